//! A container's configuration: what the client asked for over what the image brings.

use std::collections::HashMap;

use bollard_stubs::models::{ContainerConfig, ContainerCreateBody, ImageConfig};

/// Takes the configuration part out of a create request.
pub(super) fn requested(body: &ContainerCreateBody) -> ContainerConfig {
    let body = body.clone();
    ContainerConfig {
        hostname: body.hostname,
        domainname: body.domainname,
        user: body.user,
        attach_stdin: body.attach_stdin,
        attach_stdout: body.attach_stdout,
        attach_stderr: body.attach_stderr,
        exposed_ports: body.exposed_ports,
        tty: body.tty,
        open_stdin: body.open_stdin,
        stdin_once: body.stdin_once,
        env: body.env,
        cmd: body.cmd,
        healthcheck: body.healthcheck,
        args_escaped: body.args_escaped,
        image: body.image,
        volumes: body.volumes,
        working_dir: body.working_dir,
        entrypoint: body.entrypoint,
        network_disabled: body.network_disabled,
        on_build: body.on_build,
        labels: body.labels,
        stop_signal: body.stop_signal,
        stop_timeout: body.stop_timeout,
        shell: body.shell,
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}

fn is_none_or_empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// Fills in what the client left open from the image, with Docker's rules.
pub(super) fn with_image(config: &mut ContainerConfig, image: &ImageConfig) {
    if is_empty(&config.user) {
        config.user.clone_from(&image.user);
    }
    if is_empty(&config.working_dir) {
        config.working_dir.clone_from(&image.working_dir);
    }
    if is_empty(&config.stop_signal) {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if is_none_or_empty(&config.shell) {
        config.shell.clone_from(&image.shell);
    }
    merge_env(config, image);
    // An entry point of the client's own leaves the image's command behind.
    if is_none_or_empty(&config.entrypoint) {
        if is_none_or_empty(&config.cmd) {
            config.cmd.clone_from(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    union(&mut config.exposed_ports, image.exposed_ports.as_deref());
    union(&mut config.volumes, image.volumes.as_deref());
    if let Some(labels) = &image.labels {
        let mut merged: HashMap<String, String> = labels.clone();
        merged.extend(config.labels.take().unwrap_or_default());
        config.labels = Some(merged);
    }
    merge_healthcheck(config, image);
}

/// The image's variables, in its order, for keys that the client did not set.
fn merge_env(config: &mut ContainerConfig, image: &ImageConfig) {
    let key = |entry: &str| entry.split('=').next().unwrap_or("").to_owned();
    let mut env = config.env.take().unwrap_or_default();
    let set: std::collections::HashSet<String> = env.iter().map(|e| key(e)).collect();
    env.extend(
        image
            .env
            .iter()
            .flatten()
            .filter(|e| !set.contains(&key(e)))
            .cloned(),
    );
    config.env = Some(env);
}

fn union(list: &mut Option<Vec<String>>, more: Option<&[String]>) {
    let Some(more) = more.filter(|m| !m.is_empty()) else {
        return;
    };
    let merged = list.get_or_insert_with(Vec::new);
    for entry in more {
        if !merged.contains(entry) {
            merged.push(entry.clone());
        }
    }
}

fn merge_healthcheck(config: &mut ContainerConfig, image: &ImageConfig) {
    let Some(base) = &image.healthcheck else {
        return;
    };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(base.clone());
        return;
    };
    if is_none_or_empty(&own.test) {
        own.test.clone_from(&base.test);
    }
    let fill = |own: &mut Option<i64>, base: Option<i64>| {
        if own.unwrap_or(0) == 0 {
            *own = base;
        }
    };
    fill(&mut own.interval, base.interval);
    fill(&mut own.timeout, base.timeout);
    fill(&mut own.start_period, base.start_period);
    fill(&mut own.start_interval, base.start_interval);
    fill(&mut own.retries, base.retries);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Option<Vec<String>> {
        Some(entries.iter().map(|e| (*e).to_owned()).collect())
    }

    fn image() -> ImageConfig {
        ImageConfig {
            user: Some("app".to_owned()),
            env: list(&["PATH=/bin", "A=image"]),
            cmd: list(&["-l"]),
            entrypoint: list(&["/bin/sh"]),
            working_dir: Some("/srv".to_owned()),
            exposed_ports: list(&["80/tcp"]),
            labels: Some([("a".to_owned(), "image".to_owned())].into()),
            ..Default::default()
        }
    }

    fn merged(config: ContainerConfig) -> ContainerConfig {
        let mut config = config;
        with_image(&mut config, &image());
        config
    }

    #[test]
    fn the_image_fills_what_is_open() {
        let config = merged(ContainerConfig::default());
        assert_eq!(config.user.as_deref(), Some("app"));
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        assert_eq!(
            (config.entrypoint, config.cmd),
            (list(&["/bin/sh"]), list(&["-l"]))
        );
        assert_eq!(config.exposed_ports, list(&["80/tcp"]));
    }

    #[test]
    fn the_client_wins() {
        let config = merged(ContainerConfig {
            env: list(&["A=client", "B=1"]),
            cmd: list(&["-c", "true"]),
            labels: Some([("a".to_owned(), "client".to_owned())].into()),
            exposed_ports: list(&["81/tcp"]),
            ..Default::default()
        });
        assert_eq!(config.env, list(&["A=client", "B=1", "PATH=/bin"]));
        assert_eq!(
            (config.entrypoint, config.cmd),
            (list(&["/bin/sh"]), list(&["-c", "true"]))
        );
        assert_eq!(config.labels.unwrap()["a"], "client");
        assert_eq!(config.exposed_ports, list(&["81/tcp", "80/tcp"]));
    }

    #[test]
    fn an_own_entry_point_drops_the_images_command() {
        let config = merged(ContainerConfig {
            entrypoint: list(&["/own"]),
            ..Default::default()
        });
        assert_eq!((config.entrypoint, config.cmd), (list(&["/own"]), None));
        let cleared = merged(ContainerConfig {
            entrypoint: list(&[""]),
            cmd: list(&["ls"]),
            ..Default::default()
        });
        assert_eq!(cleared.entrypoint, list(&[""]));
        assert_eq!(crate::spec::arguments(&cleared).unwrap(), ["ls"]);
    }
}
