//! `serve`: the Engine API on sockets.

use std::path::PathBuf;

use corten_api::{Endpoint, Server, TlsFiles};
use corten_engine::{Engine, EngineOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::Cli;
use crate::client::ClientError;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};

/// Where Docker's clients look by themselves.
const DEFAULT_ENDPOINT: &str = "unix:///var/run/docker.sock";

/// `serve`
pub(crate) static SERVE: Command =
    Command::new("serve", "", "Serve the Docker Engine API on a socket", action!(serve))
        .arity(Arity::None)
        .heavy()
        .fills()
        .flags(&[&[
            Flag::list(
                "host",
                "Where to listen: unix:///PATH or tcp://HOST:PORT; may be given several times (default unix:///var/run/docker.sock)",
            )
            .short('H'),
            Flag::switch("insecure-tcp", "Listen on TCP without TLS, which makes root of whoever connects"),
            Flag::switch("tls", "Use TLS on TCP; implied by --tlsverify"),
            Flag::text("tlscacert", "Authority whose clients are let in (CONFIG/ca.pem)"),
            Flag::text("tlscert", "Certificate of the server (CONFIG/cert.pem)"),
            Flag::text("tlskey", "Key of the server's certificate (CONFIG/key.pem)"),
            Flag::switch("tlsverify", "Use TLS and require client certificates"),
        ]]);

async fn serve(cli: &Cli, flags: Parsed) -> Result {
    let endpoints = endpoints(cli, &flags)?;
    let tls = tls(cli, &flags);
    let opened = {
        // Whoever comes may want to free some room.
        let _freeing = corten_engine::Freeing::new();
        Engine::open(EngineOptions {
            root: cli.globals.root.clone(),
            anew: false,
        })
    };
    let engine = opened.map_err(ClientError::from)?;
    let server = Server::bind(&endpoints, tls.as_ref(), flags.on("insecure-tcp"))
        .await
        .map_err(|error| CliError::message(error.to_string()))?;
    for endpoint in server.endpoints() {
        tracing::info!(%endpoint, "API listens");
    }
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    server.serve(engine, stopped).await;
    Ok(())
}

fn endpoints(cli: &Cli, flags: &Parsed) -> Result<Vec<Endpoint>> {
    let mut hosts: Vec<String> = flags.list("host").into_iter().map(str::to_owned).collect();
    // `-H` before the command means the same; DOCKER_HOST is meant for clients.
    let environment = std::env::var("DOCKER_HOST").ok();
    if let Some(host) = cli
        .globals
        .host
        .as_ref()
        .filter(|host| Some(*host) != environment.as_ref())
    {
        hosts.insert(0, host.clone());
    }
    if hosts.is_empty() {
        hosts.push(DEFAULT_ENDPOINT.to_owned());
    }
    hosts
        .iter()
        .map(|host| {
            host.parse::<Endpoint>()
                .map_err(|error| CliError::message(error.to_string()))
        })
        .collect()
}

fn tls(cli: &Cli, flags: &Parsed) -> Option<TlsFiles> {
    let given = &cli.globals.tls;
    let verify = flags.on("tlsverify") || given.verify;
    if !verify && !flags.on("tls") && !given.on {
        return None;
    }
    let file = |flag: &str, global: &Option<PathBuf>, name: &str| {
        flags
            .nonempty(flag)
            .map(PathBuf::from)
            .or_else(|| global.clone())
            .unwrap_or_else(|| cli.globals.config_dir.join(name))
    };
    Some(TlsFiles {
        cert: file("tlscert", &given.cert, "cert.pem"),
        key: file("tlskey", &given.key, "key.pem"),
        client_ca: verify.then(|| file("tlscacert", &given.ca, "ca.pem")),
    })
}
