//! Cache keys: a digest over everything a step's result depends on, and nothing else.
//!
//! The state a step starts from enters as the digest of its layers, so equal states are one
//! however they came about, and metadata that a step does not see (LABEL, CMD, EXPOSE) never
//! changes its key. Parts are length-prefixed: no two different lists are the same bytes.

use corten_oci::{DiffId, Digest, Digester};

use crate::ops::tree::Entry;
use crate::plan::{CopyOp, Mounted, RunMount, RunOp, WorkdirOp};
use crate::request::StepLimits;

/// Changed whenever the same inputs lead to another result.
const VERSION: &str = "corten-build-4";

/// Collects the parts of a key.
pub(crate) struct KeyBuilder(Digester);

impl KeyBuilder {
    pub(crate) fn new(kind: &str) -> Self {
        let mut builder = Self(Digester::sha256());
        builder.add(VERSION).add(kind);
        builder
    }

    pub(crate) fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub(crate) fn list<S: AsRef<[u8]>>(&mut self, parts: &[S]) -> &mut Self {
        self.0.update(&(parts.len() as u64).to_le_bytes());
        for part in parts {
            self.add(part);
        }
        self
    }

    pub(crate) fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// The state after a stack of layers.
pub(crate) fn state(layers: &[DiffId]) -> Digest {
    let mut key = KeyBuilder::new("state");
    let layers: Vec<&str> = layers.iter().map(|layer| layer.digest().as_str()).collect();
    key.list(&layers);
    key.finish()
}

pub(crate) fn workdir(parent: &Digest, op: &WorkdirOp) -> Digest {
    let mut key = KeyBuilder::new("workdir");
    key.add(parent.as_str()).add(&op.path).add(&op.user);
    key.finish()
}

/// The key of a step whose layer has nothing that is later than `last`.
pub(crate) fn dated(step: &Digest, last: i64) -> Digest {
    let mut key = KeyBuilder::new("dated");
    key.add(step.as_str()).add(last.to_le_bytes());
    key.finish()
}

/// What else a command can see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) platform: &'a str,
    pub(crate) hosts: &'a [(String, String)],
    pub(crate) limits: &'a StepLimits,
    /// States that its caches begin with, in their order.
    pub(crate) caches: &'a [Digest],
}

/// `binds`: what its bind mounts show, in their order, by `kind`.
pub(crate) fn run(
    parent: &Digest,
    op: &RunOp,
    seen: Seen<'_>,
    (kind, binds): (&str, &[Digest]),
) -> Digest {
    let mut key = KeyBuilder::new("run");
    key.add(parent.as_str())
        .list(&op.args)
        .list(&op.env)
        .add(&op.user)
        .add(&op.cwd)
        .add(op.network.as_str())
        .add(seen.platform);
    if let Some((name, content)) = &op.script {
        key.add("script").add(name).add(content);
    }
    // As BuildKit: names only, addresses may differ.
    let hosts: Vec<&str> = seen.hosts.iter().map(|(name, _)| name.as_str()).collect();
    key.list(&hosts);
    mounts(&mut key, &op.mounts);
    if !seen.caches.is_empty() {
        let caches: Vec<&str> = seen.caches.iter().map(Digest::as_str).collect();
        key.add("caches").list(&caches);
    }
    if !binds.is_empty() {
        let binds: Vec<&str> = binds.iter().map(Digest::as_str).collect();
        key.add(kind).list(&binds);
    }
    if op.insecure {
        key.add("insecure");
    }
    for device in &op.devices {
        key.add("device").add(device);
    }
    if *seen.limits != StepLimits::default() {
        limits(&mut key, seen.limits);
    }
    key.finish()
}

fn limits(key: &mut KeyBuilder, limits: &StepLimits) {
    let StepLimits {
        ulimits,
        shm_size,
        hostname,
        cgroup_parent,
    } = limits;
    key.add("limits").add((ulimits.len() as u64).to_le_bytes());
    for (name, soft, hard) in ulimits {
        key.add(name)
            .add(soft.to_le_bytes())
            .add(hard.to_le_bytes());
    }
    let size = shm_size.map(u64::to_le_bytes);
    key.list(size.as_slice())
        .list(hostname.as_slice())
        .list(cgroup_parent.as_slice());
}

/// What is mounted where, and by which name it is asked for; never what is in a cache, a secret
/// or an agent.
fn mounts(key: &mut KeyBuilder, mounts: &[RunMount]) {
    for mount in mounts {
        let target = mount.target.as_deref().unwrap_or_default();
        key.add("mount")
            .add(target)
            .add([u8::from(mount.read_only)]);
        match &mount.what {
            Mounted::Bind { source, .. } => key.add("bind").add(source),
            Mounted::Cache {
                id,
                source,
                owner,
                mode,
                ..
            } => key
                .add(format!("cache {owner:?} {mode:o}"))
                .add(id)
                .add(source),
            Mounted::Tmpfs { size } => key.add(format!("tmpfs {size:?}")),
            Mounted::Secret {
                id,
                env,
                required,
                owner,
                mode,
            } => key
                .add(format!("secret {required} {owner:?} {mode:o} {env:?}"))
                .add(id),
            Mounted::Ssh {
                id,
                required,
                owner,
                mode,
            } => key
                .add(format!("ssh {required} {owner:?} {mode:o}"))
                .add(id),
        };
    }
}

/// A layer with a part of a context, by what is in it, when that was changed, and where it is
/// there. Unlike what a RUN makes, which no time is a reason to make again, what a RUN is shown
/// must have the context's times: compilers go by them.
pub(crate) fn context_mount(shown: &Shown, at: &str) -> Digest {
    let mut key = KeyBuilder::new("context mount");
    key.add(shown.content.as_str())
        .add(shown.times.as_str())
        .add(at);
    key.finish()
}

/// What a bind mount shows of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) content: Digest,
    pub(crate) times: Digest,
}

impl Shown {
    /// `content`: the entries' digest.
    pub(crate) fn new(content: Digest, entries: &[Entry]) -> Self {
        let mut times = KeyBuilder::new("times");
        for entry in entries {
            let (seconds, nanos) = entry.mtime;
            times.add(seconds.to_le_bytes()).add(nanos.to_le_bytes());
        }
        Self {
            content,
            times: times.finish(),
        }
    }
}

/// `content`: digest of the selected files as they will be written; or, for a key that can be
/// looked up before any file is read, of the state they are taken from. `remotes`: what those
/// are that are elsewhere.
pub(crate) fn copy(
    parent: &Digest,
    op: &CopyOp,
    kind: &str,
    content: &Digest,
    remotes: &[String],
) -> Digest {
    let mut key = KeyBuilder::new("copy");
    // Names of owners are looked up below, also for a layer that is made without it.
    let by_name = |owner: &String| !owner.bytes().all(|b| b.is_ascii_digit() || b == b':');
    if !op.link || op.chown.as_ref().is_some_and(by_name) {
        key.add(parent.as_str());
    }
    key.add(kind)
        .add(content.as_str())
        .add(&op.destination)
        .add(op.chown.as_deref().unwrap_or_default())
        .add(op.chmod.as_ref().map_or(String::new(), ToString::to_string))
        .add([u8::from(op.unpack), u8::from(op.parents), u8::from(op.link)])
        .list(&op.exclude);
    if kind == FROM_STATE {
        key.list(&op.sources);
    }
    if !remotes.is_empty() {
        key.add("remotes").list(remotes);
    }
    for (name, content) in &op.inline {
        key.add(name).add(content);
    }
    key.finish()
}

/// Key by the selected files.
pub(crate) const BY_CONTENT: &str = "content";
/// Key by the state of the stage or image they come from.
pub(crate) const FROM_STATE: &str = "state";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::StepNetworkMode;

    fn op() -> RunOp {
        RunOp {
            args: vec!["/bin/sh".into(), "-c".into(), "true".into()],
            env: vec!["PATH=/bin".into()],
            proxies: Vec::new(),
            user: String::new(),
            cwd: "/".into(),
            network: StepNetworkMode::Default,
            script: None,
            mounts: Vec::new(),
            insecure: false,
            devices: Vec::new(),
        }
    }

    const NO_BINDS: (&str, &[Digest]) = (BY_CONTENT, &[]);

    fn seen() -> Seen<'static> {
        static NONE: StepLimits = StepLimits {
            ulimits: Vec::new(),
            hostname: None,
            shm_size: None,
            cgroup_parent: None,
        };
        Seen {
            platform: "linux/amd64",
            hosts: &[],
            limits: &NONE,
            caches: &[],
        }
    }

    #[test]
    fn a_run_key_depends_on_what_the_command_sees() {
        let parent = state(&[]);
        let base = run(&parent, &op(), seen(), NO_BINDS);
        let mut proxied = op();
        proxied.proxies = vec!["HTTP_PROXY=x".into()];
        assert_eq!(run(&parent, &proxied, seen(), NO_BINDS), base);
        let changes: [fn(&mut RunOp); 6] = [
            |op| op.devices.push("v.com/k=a".into()),
            |op| op.args[2] = "false".into(),
            |op| op.env.push("A=1".into()),
            |op| op.user = "1000".into(),
            |op| op.cwd = "/app".into(),
            |op| op.network = StepNetworkMode::None,
        ];
        for change in changes {
            let mut changed = op();
            change(&mut changed);
            assert_ne!(
                run(&parent, &changed, seen(), NO_BINDS),
                base,
                "{changed:?}"
            );
        }
        let other = state(&[DiffId(Digest::of(b"x"))]);
        assert_ne!(run(&other, &op(), seen(), NO_BINDS), base);
        let limited = |change: fn(&mut StepLimits)| {
            let mut limits = StepLimits::default();
            change(&mut limits);
            let seen = Seen {
                limits: &limits,
                ..seen()
            };
            run(&parent, &op(), seen, NO_BINDS)
        };
        let keys = [
            base,
            limited(|limits| limits.shm_size = Some(0)),
            limited(|limits| limits.hostname = Some("a".into())),
            limited(|limits| limits.cgroup_parent = Some("a".into())),
            limited(|limits| limits.ulimits = vec![("a".into(), 1, 2)]),
            limited(|limits| limits.ulimits = vec![("a".into(), 2, 1)]),
        ];
        let distinct: std::collections::BTreeSet<&str> = keys.iter().map(Digest::as_str).collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn what_is_asked_for_is_in_the_key_and_what_is_in_it_is_not() {
        let parent = state(&[]);
        let with = |what: Mounted, binds: &[Digest], caches: &[Digest]| {
            let mut op = op();
            op.mounts.push(RunMount {
                target: Some("/m".into()),
                read_only: true,
                what,
            });
            let seen = Seen { caches, ..seen() };
            run(&parent, &op, seen, (BY_CONTENT, binds))
        };
        let secret = |id: &str, env: Option<&str>, required, mode| Mounted::Secret {
            id: id.into(),
            env: env.map(str::to_owned),
            required,
            owner: (0, 0),
            mode,
        };
        let ssh = |id: &str, required| Mounted::Ssh {
            id: id.into(),
            required,
            owner: (0, 0),
            mode: 0o600,
        };
        let cache = |id: &str, source: &str, uid, mode| Mounted::Cache {
            id: id.into(),
            sharing: corten_dockerfile::Sharing::Shared,
            from: crate::plan::MountFrom::Nothing,
            source: source.into(),
            owner: (uid, 0),
            mode,
        };
        let bind = || Mounted::Bind {
            from: crate::plan::MountFrom::Nothing,
            source: String::new(),
        };
        let digests = [Digest::of(b"1"), Digest::of(b"2")];
        let keys = [
            with(secret("a", None, false, 0o400), &[], &[]),
            with(secret("b", None, false, 0o400), &[], &[]),
            with(secret("a", Some(""), false, 0o400), &[], &[]),
            with(secret("b", Some(""), false, 0o400), &[], &[]),
            with(secret("a", Some("E"), false, 0o400), &[], &[]),
            with(secret("a", None, true, 0o400), &[], &[]),
            with(secret("a", None, false, 0o444), &[], &[]),
            with(ssh("a", false), &[], &[]),
            with(ssh("b", false), &[], &[]),
            with(ssh("a", true), &[], &[]),
            with(cache("a", "", 0, 0o755), &[], &digests[..1]),
            with(cache("a", "", 0, 0o755), &[], &digests[1..]),
            with(cache("b", "", 0, 0o755), &[], &digests[..1]),
            with(cache("a", "d", 0, 0o755), &[], &digests[..1]),
            with(cache("a", "", 1, 0o755), &[], &digests[..1]),
            with(cache("a", "", 0, 0o700), &[], &digests[..1]),
            with(bind(), &digests[..1], &[]),
            with(bind(), &digests[1..], &[]),
        ];
        let distinct: std::collections::BTreeSet<&str> = keys.iter().map(Digest::as_str).collect();
        assert_eq!(distinct.len(), keys.len());
        // The same question has the same key.
        assert_eq!(with(secret("a", None, false, 0o400), &[], &[]), keys[0]);
    }

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[&str]| {
            let mut key = KeyBuilder::new("t");
            key.list(parts);
            key.finish()
        };
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
    }
}
