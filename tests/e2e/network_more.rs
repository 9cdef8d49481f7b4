//! Networks as templates and without gateways, links, and what is told of networks and volumes.

use crate::harness::{Engine, free_net, until};
use crate::networks::{addresses, of, sleeper};

#[test]
fn a_configuration_is_a_template() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let subnet = format!("{net}.0/24");
    engine.ok([
        "network",
        "create",
        "--config-only",
        "--subnet",
        &subnet,
        "--label",
        "team=red",
        "template",
    ]);
    let shown = ["inspect", "-f", "{{.Driver}} {{.ConfigOnly}}", "template"];
    assert_eq!(engine.ok(shown), "null true");
    engine.ok(["network", "create", "--config-from", "template", "real"]);
    let shown = [
        "network",
        "inspect",
        "-f",
        "{{.Driver}} {{.ConfigFrom.Network}} {{.Labels.team}} {{(index .IPAM.Config 0).Subnet}}",
        "real",
    ];
    assert_eq!(engine.ok(shown), format!("bridge template red {subnet}"));
    sleeper(&engine, "web", &["real"]);
    assert!(addresses(&engine, "web").contains(&format!("{net}.2/24")));
    for (args, told) in [
        (
            &["network", "connect", "template", "web"][..],
            "cannot create endpoint on configuration-only network",
        ),
        (
            &["network", "rm", "template"],
            "configuration network \"template\" is in use",
        ),
        (
            &["network", "create", "--config-from", "absent", "x"],
            "configuration network \"absent\" does not exist",
        ),
        (
            &[
                "network",
                "create",
                "--config-from",
                "template",
                "--label",
                "a=b",
                "x",
            ],
            "user specified configurations are not supported if the network depends on a \
             configuration network",
        ),
        (
            &["network", "create", "--config-only", "--internal", "x"],
            "configuration network can only contain network specific fields",
        ),
    ] {
        let said = engine.fails(1, args);
        assert!(said.contains(told), "{args:?}: {said}");
    }
    let run = ["run", "--rm", "--network", "template", "alpine", "true"];
    assert!(
        engine
            .fails(125, run)
            .contains("cannot create endpoint on configuration-only network")
    );
    engine.ok(["rm", "-f", "web"]);
    engine.ok(["network", "prune", "-f"]);
    let names = engine.ok(["network", "ls", "--format", "{{.Name}}"]);
    assert!(
        names.contains("template") && !names.contains("real"),
        "{names}"
    );
    engine.ok(["network", "rm", "template"]);
    engine.assert_clean();
}

#[test]
fn an_isolated_network_has_no_gateway() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let mode = "com.docker.network.bridge.gateway_mode_ipv4=isolated";
    let subnet = format!("{net}.0/24");
    let create = [
        "network", "create", "-o", mode, "--subnet", &subnet, "apart",
    ];
    assert!(
        engine
            .fails(1, create)
            .contains("gateway mode 'isolated' can only be used for an internal network")
    );
    engine.ok([
        "network",
        "create",
        "-o",
        mode,
        "--subnet",
        &subnet,
        "--internal",
        "apart",
    ]);
    sleeper(&engine, "one", &["apart"]);
    sleeper(&engine, "two", &["apart"]);
    let link = of(
        &engine,
        "one",
        "{{.NetworkSettings.Networks.apart.Gateway}}",
    );
    assert_eq!(link, "");
    let bridge = engine.ok(["network", "inspect", "-f", "{{.Id}}", "apart"]);
    let host = std::process::Command::new("ip")
        .args(["-4", "-o", "addr"])
        .output();
    let host = String::from_utf8(host.unwrap().stdout).unwrap();
    assert!(!host.contains(&format!("{net}.")), "{bridge}: {host}");
    let other = of(
        &engine,
        "two",
        "{{.NetworkSettings.Networks.apart.IPAddress}}",
    );
    engine.ok(["exec", "one", "ping", "-c", "1", "-W", "5", &other]);
    engine.ok(["rm", "-f", "one", "two"]);
    // The network is the same after the bridge was taken away.
    engine.ok(["run", "--rm", "--network", "apart", "alpine", "true"]);
    engine.ok(["network", "rm", "apart"]);
    engine.assert_clean();
}

#[test]
fn links_are_variables_too() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "db",
        "--expose",
        "5432",
        "-e",
        "MODE=fast",
        "alpine",
        "sleep",
        "1000",
    ]);
    let address = of(
        &engine,
        "db",
        "{{.NetworkSettings.Networks.bridge.IPAddress}}",
    );
    let run = [
        "run",
        "--name",
        "web",
        "--link",
        "db:my-sql",
        "alpine",
        "env",
    ];
    let variables = engine.ok(run);
    for wanted in [
        format!("MY_SQL_PORT=tcp://{address}:5432"),
        format!("MY_SQL_PORT_5432_TCP_ADDR={address}"),
        "MY_SQL_NAME=/web/my-sql".to_owned(),
        "MY_SQL_ENV_MODE=fast".to_owned(),
    ] {
        assert!(
            variables.lines().any(|line| line == wanted),
            "{wanted}: {variables}"
        );
    }
}

#[test]
fn volumes_and_pruning_are_told_of() {
    let engine = Engine::with_alpine();
    let began = engine.ok(["run", "--rm", "alpine", "date", "+%s"]);
    engine.ok([
        "run",
        "--rm",
        "--name",
        "web",
        "-v",
        "data:/d:ro",
        "alpine",
        "true",
    ]);
    engine.ok(["network", "prune", "-f"]);
    engine.ok(["volume", "prune", "-a", "-f"]);
    let seen = || {
        let template = "{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes}}";
        // Until a moment that is over: it ends by itself.
        engine.ok([
            "events",
            "--since",
            &began,
            "--until",
            "0s",
            "--format",
            template,
            "--filter",
            "type=volume",
            "--filter",
            "type=network",
        ])
    };
    until("everything is told", || seen().contains("volume prune"));
    let told = seen();
    let of_volume = |action: &str| {
        let begin = format!("volume {action} data ");
        told.lines()
            .find(|line| line.starts_with(&begin))
            .map(str::to_owned)
    };
    let mount = of_volume("mount").unwrap();
    for word in [
        "driver:local",
        "destination:/d",
        "read/write:false",
        "propagation:",
    ] {
        assert!(mount.contains(word), "{word}: {mount}");
    }
    let unmount = of_volume("unmount").unwrap();
    assert!(unmount.contains("container:"), "{unmount}");
    assert!(told.contains("network prune  map[reclaimed:0]"), "{told}");
}
