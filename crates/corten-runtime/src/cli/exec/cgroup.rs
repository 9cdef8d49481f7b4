//! `exec --cgroup`: an existing group below the container's own for the new process.

use std::fs::File;

use crate::cgroup::Cgroup;
use crate::cli::CliError;
use crate::exec::Extras;

/// Opens the groups named: one path for all hierarchies, or one for each controller
/// (`cpu,cpuacct:PATH`) of v1. What is not named stays the container's own group.
pub(super) fn below(container: &Cgroup, given: &[String]) -> Result<Extras, CliError> {
    let mut extras = Extras::default();
    let mut seen: Vec<&str> = Vec::new();
    for text in given {
        let invalid = |reason: &str| CliError::Refused(format!("--cgroup {text:?}: {reason}"));
        let Some((controllers, path)) = text.split_once(':') else {
            if given.len() > 1 {
                return Err(invalid("several groups need a controller each"));
            }
            let group = Cgroup::open(&join(container, text))?;
            if !group.exists() {
                return Err(invalid("there is no such group below the container's"));
            }
            extras.born_in = group.clone_target()?;
            extras.groups = group.join_files()?;
            return Ok(extras);
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                return Err(invalid("the controller is empty"));
            }
            if seen.contains(&controller) {
                return Err(invalid("the controller is named twice"));
            }
            seen.push(controller);
            // Checks the path, too.
            Cgroup::open(&join(container, path))?;
            let mut views = container.legacy_views();
            let view = views.find(|view| view.options.iter().any(|name| name == controller));
            let view = view
                .ok_or_else(|| invalid("the container is in no v1 hierarchy of this controller"))?;
            let tasks = view.dir.join(path.trim_start_matches('/')).join("tasks");
            let file = File::options().write(true).open(&tasks);
            let file = file
                .map_err(|error| CliError::io(format_args!("open {}", tasks.display()), error))?;
            extras.groups.push(file.into());
        }
    }
    Ok(extras)
}

fn join(container: &Cgroup, path: &str) -> String {
    let path = path.trim_matches('/');
    if path.is_empty() {
        container.path().to_owned()
    } else {
        format!("{}/{path}", container.path())
    }
}
