//! Connections to the hosts of registries: whom they trust, through which proxy they go, how long
//! they wait.
//!
//! The machine's authorities are read when somebody shows a certificate, and not before: a
//! registry without TLS needs none, and there may be none.

use std::path::Path;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::endpoint::Trust;
use crate::error::RegistryError;
use crate::http::innermost;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections to one registry's hosts. Redirects are followed by `http`, not by reqwest.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    pub(crate) general: reqwest::Client,
    /// Sends bodies of any length. Its answers may take as long: reqwest's read timeout runs
    /// while a body is sent.
    pub(crate) upload: reqwest::Client,
}

/// How a client shows itself and looks at certificates.
enum Tls {
    /// At all of them, in the same way for both clients: what was read for one serves the other.
    Checked(Box<ClientConfig>),
    /// At none.
    Unchecked(Option<reqwest::Identity>),
}

/// Makes connections with this trust; local ones go through a proxy only if it is theirs.
pub(crate) fn connect(trust: &Trust) -> Result<Connections, RegistryError> {
    // Another part of the process may have installed one already: either will do.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let tls = tls(trust)?;
    Ok(Connections {
        general: client(trust, &tls, Some(READ_TIMEOUT))?,
        upload: client(trust, &tls, None)?,
    })
}

fn failed(path: impl AsRef<Path>, reason: impl ToString) -> RegistryError {
    RegistryError::Config {
        path: path.as_ref().into(),
        reason: reason.to_string(),
    }
}

fn client(
    trust: &Trust,
    tls: &Tls,
    read_timeout: Option<Duration>,
) -> Result<reqwest::Client, RegistryError> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(trust.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = read_timeout {
        builder = builder.read_timeout(timeout);
    }
    if let Some(url) = &trust.proxy {
        let proxy = reqwest::Proxy::all(url).map_err(|e| failed(url, innermost(&e)))?;
        builder = builder.proxy(proxy);
    } else if trust.local {
        builder = builder.no_proxy();
    }
    builder = match tls {
        Tls::Checked(config) => builder.tls_backend_preconfigured(ClientConfig::clone(config)),
        Tls::Unchecked(identity) => {
            let builder = builder.danger_accept_invalid_certs(true);
            match identity.clone() {
                Some(identity) => builder.identity(identity),
                None => builder,
            }
        }
    };
    builder.build().map_err(|e| failed("TLS", innermost(&e)))
}

fn tls(trust: &Trust) -> Result<Tls, RegistryError> {
    let mut authorities = Vec::new();
    for ca in &trust.authorities {
        let pem = std::fs::read(ca).map_err(|e| failed(ca, e))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            authorities.push(certificate.map_err(|e| failed(ca, e))?);
        }
    }
    let identity = match &trust.client {
        Some((cert, key)) => {
            let mut pem = std::fs::read(cert).map_err(|e| failed(cert, e))?;
            if key != cert {
                pem.push(b'\n');
                pem.extend(std::fs::read(key).map_err(|e| failed(key, e))?);
            }
            // Looked at here as well, for an error that names the file.
            let identity = reqwest::Identity::from_pem(&pem).map_err(|e| failed(cert, e))?;
            Some((pem, identity))
        }
        None => None,
    };
    if trust.insecure {
        return Ok(Tls::Unchecked(identity.map(|(_, identity)| identity)));
    }
    let identity = identity.map(|(pem, _)| corten_tls::Identity::of_pem(&pem));
    let identity = identity.transpose().map_err(|e| failed("TLS", e))?;
    let trust = corten_tls::Trust::MachineOrThemselves(authorities);
    let mut config = corten_tls::client(trust, identity).map_err(|e| failed("TLS", e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls::Checked(Box::new(config)))
}
