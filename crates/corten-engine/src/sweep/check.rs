//! The full check: everything that could be orphaned or inconsistent.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use corten_db::Durability;

use crate::containers::{files, row, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks;
use crate::system::Finding;
use crate::volumes::{driver, hold, store as volumes, transfer};

type Result<T> = std::result::Result<T, EngineError>;

/// How long what may be about to go by itself is watched before it is called orphaned.
const LINGERING: Duration = Duration::from_secs(3);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A container's id, as run directories and control groups are named.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Looks for everything that could be orphaned or inconsistent; puts it right when `repair`
/// is set. Blocks.
pub(crate) fn check(engine: &Engine, repair: bool) -> Result<Vec<Finding>> {
    let mut check = Check {
        engine,
        repair,
        findings: Vec::new(),
    };
    check.forsaken()?;
    check.supervisors()?;
    check.run_directories()?;
    check.cgroups();
    check.network()?;
    check.endpoints()?;
    check.container_directories()?;
    check.volume_directories()?;
    check.volume_rests()?;
    check.leases()?;
    check.store()?;
    Ok(check.findings)
}

struct Check<'a> {
    engine: &'a Engine,
    repair: bool,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn found(&mut self, kind: &str, object: &str, detail: impl Into<String>) {
        self.findings.push(Finding {
            kind: kind.to_owned(),
            object: object.to_owned(),
            detail: detail.into(),
            repaired: self.repair,
            lost: None,
        });
    }

    /// Those of `run --rm` that was killed go with the first look, which is no finding.
    fn forsaken(&self) -> Result<()> {
        for mut container in self.engine.database().read(|c| row::all(c, false))? {
            if !container.status.is_live() {
                state::reconcile(self.engine, &mut container)?;
            }
        }
        Ok(())
    }

    /// Containers that are said to run while nobody supervises them.
    fn supervisors(&mut self) -> Result<()> {
        for mut container in self.engine.database().read(|c| row::all(c, true))? {
            if state::has_supervisor(self.engine, &container.id) {
                continue;
            }
            // What ended between the two looks is no finding.
            let fresh = self
                .engine
                .database()
                .read(|c| row::get(c, &container.id))?;
            if !fresh.is_some_and(|c| c.status.is_live()) {
                continue;
            }
            self.found(
                "supervisor",
                &container.id,
                format!(
                    "container {} is said to run, but its supervisor died",
                    container.name
                ),
            );
            if self.repair {
                state::reconcile(self.engine, &mut container)?;
            }
        }
        Ok(())
    }

    /// Run directories of supervisors that are no more.
    fn run_directories(&mut self) -> Result<()> {
        for id in super::run_directories(self.engine) {
            if state::has_supervisor(self.engine, &id) {
                continue;
            }
            self.found("run-dir", &id, "its supervisor died");
            if self.repair {
                super::bury_run_directory(self.engine, &id)?;
            }
        }
        Ok(())
    }

    /// Control groups without a supervisor or builder.
    fn cgroups(&mut self) {
        let parent = self.engine.layout().cgroup_parent();
        for name in corten_runtime::cgroup::children(&parent).unwrap_or_default() {
            let orphaned = if is_id(&name) {
                !state::has_supervisor(self.engine, &name)
            } else {
                // A step's group is removed by its executor, which dies with its builder;
                // one without processes is nobody's.
                super::cgroup_pids(&format!("{parent}/{name}")).is_empty()
            };
            if orphaned {
                self.found(
                    "cgroup",
                    &format!("{parent}/{name}"),
                    "nothing supervises it",
                );
                if self.repair {
                    super::remove_cgroup(&format!("{parent}/{name}"));
                }
            }
        }
    }

    /// Links, published ports and addresses of the dead.
    fn network(&mut self) -> Result<()> {
        let mut lines = super::network_orphans(self.engine)?;
        // The kernel takes its time over the links of a container that has just ended.
        let deadline = Instant::now() + LINGERING;
        while !lines.is_empty() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
            let now = super::network_orphans(self.engine)?;
            lines.retain(|line| now.contains(line));
        }
        if self.repair && !lines.is_empty() {
            super::network(self.engine, None)?;
        }
        for line in lines {
            self.found("network", &line, "belongs to nothing that lives");
        }
        Ok(())
    }

    /// Running containers that are on other networks than their rows say: whoever changed the rows
    /// was killed before the supervisor was told.
    fn endpoints(&mut self) -> Result<()> {
        let mut found = out_of_line(self.engine)?;
        // Somebody may be telling it this moment.
        let deadline = Instant::now() + LINGERING;
        while !found.is_empty() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
            let now = out_of_line(self.engine)?;
            found.retain(|one| now.contains(one));
        }
        // Of each what its repair failed by. One that is being changed, or whose supervisor does not
        // answer, is no reason not to look at all else.
        let mut tried: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (id, mut detail) in found {
            let failed = match tried.get(&id) {
                Some(failed) => failed.clone(),
                None if self.repair => {
                    let work = networks::bring_in_line(self.engine, &id);
                    let done = tokio::runtime::Handle::current().block_on(work);
                    let failed = done.err().map(|error| error.to_string());
                    tried.insert(id.clone(), failed.clone());
                    failed
                }
                None => None,
            };
            if let Some(why) = &failed {
                detail = format!("{detail}: {why}");
            }
            self.found("endpoint", &id, detail);
            if failed.is_some()
                && let Some(last) = self.findings.last_mut()
            {
                last.repaired = false;
            }
        }
        Ok(())
    }

    /// Directories of containers without a row.
    fn container_directories(&mut self) -> Result<()> {
        for name in entries(&self.engine.layout().containers()) {
            // A row is always there before its directory.
            if self
                .engine
                .database()
                .read(|c| row::get(c, &name))?
                .is_some()
            {
                continue;
            }
            self.found("container-dir", &name, "belongs to no container");
            if self.repair {
                files::remove_directory(self.engine, &name);
            }
        }
        Ok(())
    }

    /// Directories of volumes without a row. Data is never thrown away by a check: they
    /// become volumes again.
    fn volume_directories(&mut self) -> Result<()> {
        for name in entries(&self.engine.layout().volumes()) {
            if self
                .engine
                .database()
                .read(|c| volumes::get(c, &name))?
                .is_some()
                || crate::parse::names::volume_name(&name).is_err()
            {
                continue;
            }
            self.found("volume-dir", &name, "is not known as a volume");
            if self.repair {
                let wish = volumes::Wish {
                    name,
                    ..Default::default()
                };
                self.engine.write(Durability::Synced, |c| {
                    volumes::insert(c, &wish, driver::DEFAULT)
                })?;
            }
        }
        Ok(())
    }

    /// What killed processes have left mounted on volumes, or beside their data.
    fn volume_rests(&mut self) -> Result<()> {
        for row in self.engine.database().read(volumes::all)? {
            let data = self.engine.layout().volume_data(&row.name);
            if transfer::leftover(&data, self.repair)? {
                self.found(
                    "volume-part",
                    &row.name,
                    "of an import, copy or first use that was killed",
                );
            }
        }
        for name in hold::orphans(self.engine)? {
            self.found("volume-mount", &name, "is mounted, and nobody uses it");
        }
        if self.repair {
            hold::sweep(self.engine)?;
        }
        Ok(())
    }

    /// Leases of containers without a row.
    fn leases(&mut self) -> Result<()> {
        for owner in self.engine.store().leases().owners()? {
            let Some(id) = owner.strip_prefix(crate::containers::LEASE_PREFIX) else {
                continue;
            };
            if self.engine.database().read(|c| row::get(c, id))?.is_some() {
                continue;
            }
            self.found("lease", &owner, "belongs to no container");
            if self.repair {
                self.engine.store().leases().release(&owner)?;
            }
        }
        Ok(())
    }

    /// What the store knows about itself.
    fn store(&mut self) -> Result<()> {
        // What a killed build or pull brought in is not wrong, only unused.
        self.engine.store().gc()?;
        for finding in self.engine.store().check(self.repair)? {
            self.findings.push(Finding {
                kind: finding.kind.to_string(),
                object: finding.object,
                detail: finding.detail,
                repaired: finding.repaired,
                lost: finding.lost,
            });
        }
        // Nor what was removed while that looked, which takes its time and keeps others from
        // collecting.
        self.engine.store().gc()?;
        Ok(())
    }
}

/// What running containers are to have on networks and have not, or the other way round: the
/// container's id, and that in words.
fn out_of_line(engine: &Engine) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for container in engine.database().read(|c| row::all(c, true))? {
        let left = networks::Left::of(engine, &container)?;
        let name = &container.name;
        found.extend(left.wanting.iter().map(|e| {
            let network = &e.network_name;
            let words = format!("container {name} is to be on network {network}, and is not");
            (container.id.clone(), words)
        }));
        found.extend(left.held.into_iter().map(|network| {
            let words = format!("container {name} is still on network {network}");
            (container.id.clone(), words)
        }));
    }
    Ok(found)
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
