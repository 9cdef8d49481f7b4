//! Layers in both forms: what containers share, what a kill or a full disk leaves.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Background, Engine, until};

const FORMS: [&str; 2] = ["overlay", "erofs"];

/// The pid of a container's supervisor.
fn supervisor(id: &str) -> String {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let mut found = all.filter(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.contains("supervise") && command.contains(id)
    });
    let entry = found
        .next()
        .unwrap_or_else(|| panic!("no supervisor of {id}"));
    entry.file_name().into_string().unwrap()
}

/// The file systems (by device number) of EROFS images that a process has descriptors of.
fn images(pid: &str) -> BTreeSet<u64> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    all.filter(|entry| {
        let stat = Command::new("stat")
            .args(["-Lf", "-c", "%t"])
            .arg(entry.path())
            .output();
        String::from_utf8_lossy(&stat.unwrap().stdout).trim() == "e0f5e1e2"
    })
    .map(|entry| fs::metadata(entry.path()).unwrap().dev())
    .collect()
}

/// Whether layers are images now: what is tested needs a kernel that mounts them.
fn with_images(engine: &Engine) -> bool {
    let layers = fs::read_dir(engine.root().join("layers"))
        .unwrap()
        .flatten();
    let found = layers
        .map(|entry| entry.path())
        .any(|path| path.extension() == Some("erofs".as_ref()));
    if !found {
        println!("skipped: this kernel mounts no EROFS images");
    }
    found
}

/// An image of several megabytes in many files, at a registry.
struct Remote {
    engine: Engine,
    _server: Background,
    name: String,
    /// Of all files' contents, as the shell in the image computes it.
    sum: String,
}

const SUM: &str = "cat /tree/*/* | md5sum; ls -lR /tree | grep '^-' | md5sum";

impl Remote {
    fn new() -> Self {
        let engine = Engine::with_alpine();
        let (server, address) = engine.registry("registry", &[]);
        let name = format!("{address}/tree");
        let context = engine.context("tree", &[("Dockerfile", "FROM alpine\nCOPY tree /tree\n")]);
        let mut state = 1_u64;
        for n in 0..600 {
            let file = context.join(format!("tree/{}/{n}", n % 7));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let bytes: Vec<u8> = (0..(n * 53) % 30_000)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    state.to_be_bytes()[0]
                })
                .collect();
            fs::write(file, bytes).unwrap();
        }
        engine.ok(["build", "-q", "-t", &name, context.to_str().unwrap()]);
        let sum = engine.ok(["run", "--rm", &name, "sh", "-c", SUM]);
        engine.ok(["push", "-q", &name]);
        engine.ok(["rmi", "-f", &name, "alpine"]);
        engine.ok(["system", "prune", "-af"]);
        Self {
            engine,
            _server: server,
            name,
            sum,
        }
    }

    fn command(&self, form: &str, args: &[&str]) -> Command {
        let mut command = self.engine.command(args);
        command.env("CORTEN_LAYER_DRIVER", form);
        command
    }

    #[track_caller]
    fn pull(&self, form: &str) {
        let done = self
            .command(form, &["pull", "-q", &self.name])
            .output()
            .unwrap();
        assert!(done.status.success(), "{form}: {done:?}");
    }

    #[track_caller]
    fn assert_whole(&self) {
        let found = self.engine.ok(["run", "--rm", &self.name, "sh", "-c", SUM]);
        assert_eq!(found, self.sum);
        self.engine.assert_clean();
    }

    /// As if nothing had ever been pulled.
    fn forget(&self) {
        self.engine.run(["rmi", "-f", &self.name]);
        self.engine.ok(["system", "prune", "-af"]);
    }
}

#[test]
fn containers_of_one_image_share_its_file_systems() {
    let remote = Remote::new();
    let (engine, name) = (&remote.engine, remote.name.as_str());
    let start = || engine.ok(["run", "-d", name, "sleep", "1000"]);
    remote.pull("erofs");
    if !with_images(engine) {
        return;
    }
    let first = start();
    let shared = images(&supervisor(&first));
    assert!(!shared.is_empty());
    let second = start();
    assert_eq!(images(&supervisor(&second)), shared);

    // Whoever was first is not needed for it.
    let kill = Command::new("kill")
        .args(["-9", &supervisor(&first)])
        .status();
    assert!(kill.unwrap().success());
    until("its death is noticed", || {
        engine.ok(["inspect", "-f", "{{.State.Running}}", &first]) == "false"
    });
    let third = start();
    assert_eq!(images(&supervisor(&third)), shared);
    let short = engine.ok(["run", "--rm", name, "sh", "-c", SUM]);
    assert_eq!(short, remote.sum);
    // A container that starts again keeps what it had, too.
    engine.ok(["restart", "-t", "0", &second, &third]);
    assert_eq!(images(&supervisor(&second)).len(), shared.len());

    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(" erofs "), "the host sees none of it");
    engine.ok(["rm", "-f", &first, &second, &third]);
    engine.ok(["rmi", "-f", name]);
    engine.ok(["system", "prune", "-af"]);
    engine.assert_clean();
}

#[test]
fn many_that_start_at_once_share_too() {
    let remote = Remote::new();
    let (engine, name) = (&remote.engine, remote.name.as_str());
    remote.pull("erofs");
    if !with_images(engine) {
        return;
    }
    let starting: Vec<Background> = (0..6)
        .map(|_| engine.spawn(["run", "-d", name, "sleep", "1000"]))
        .collect();
    let ids: Vec<String> = starting
        .into_iter()
        .map(|run| run.finish().stdout.trim().to_owned())
        .collect();
    let all: Vec<BTreeSet<u64>> = ids.iter().map(|id| images(&supervisor(id))).collect();
    assert!(!all[0].is_empty());
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    for id in &ids {
        engine.ok(["rm", "-f", id]);
    }
    engine.assert_clean();
}

#[test]
fn a_pull_killed_at_any_moment_leaves_a_store_that_is_whole() {
    let remote = Remote::new();
    for form in FORMS {
        remote.forget();
        for n in 0..14_u64 {
            let mut pulling = remote
                .command(form, &["pull", "-q", &remote.name])
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(n * n));
            pulling.kill().unwrap();
            pulling.wait().unwrap();
            if n % 5 == 4 {
                let check = remote.engine.run(["system", "check", "--repair"]);
                assert!(check.code <= 1, "{check:?}");
            }
            if remote.engine.run(["image", "inspect", &remote.name]).code == 0 {
                remote.forget();
            }
        }
        remote.pull(form);
        remote.assert_whole();
    }
}

#[test]
fn a_build_killed_on_a_pulled_image_can_be_repeated() {
    let remote = Remote::new();
    for form in FORMS {
        remote.forget();
        remote.pull(form);
        let dockerfile = format!(
            "FROM {}\nRUN echo {form} > /tree/form; sleep 0.2\nRUN rm -r /tree/0\n",
            remote.name
        );
        let context = remote
            .engine
            .context(&format!("killed-{form}"), &[("Dockerfile", &dockerfile)]);
        let args = ["build", "-q", "-t", "more", context.to_str().unwrap()];
        for moment in [30, 80, 150, 300] {
            let mut building = remote.command(form, &args).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(moment));
            building.kill().unwrap();
            building.wait().unwrap();
        }
        remote.engine.ok(args);
        let list = [
            "run",
            "--rm",
            "more",
            "sh",
            "-c",
            "ls /tree; cat /tree/form",
        ];
        let listed = remote.engine.ok(list);
        assert_eq!(listed, format!("1\n2\n3\n4\n5\n6\nform\n{form}"));
        remote.engine.ok(["rmi", "more"]);
        remote.assert_whole();
    }
}

#[test]
fn layers_of_either_form_serve_both_settings() {
    let remote = Remote::new();
    for [first, second] in [["erofs", "overlay"], ["overlay", "erofs"]] {
        remote.forget();
        remote.pull(first);
        let context = remote.engine.context(
            &format!("more-{first}"),
            &[(
                "Dockerfile",
                &format!(
                    "FROM {}\nRUN rm /tree/0/0; echo {first} > /tree/form\n",
                    remote.name
                ),
            )],
        );
        let context = context.to_str().unwrap();
        let built = remote
            .command(second, &["build", "-q", "-t", "more", context])
            .output();
        assert!(built.unwrap().status.success());
        let ran = remote
            .command(second, &["run", "--rm", "more", "cat", "/tree/form"])
            .output();
        assert_eq!(String::from_utf8_lossy(&ran.unwrap().stdout).trim(), first);
        let gone = remote
            .command(second, &["run", "--rm", "more", "ls", "/tree/0/0"])
            .output();
        assert!(!gone.unwrap().status.success());
        remote.engine.ok(["rmi", "more"]);
        remote.assert_whole();
    }
}

/// A small file system mounted somewhere, for as long as this lives.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn new(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=711");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        assert!(mount.status().unwrap().success());
        Self(at.into())
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-o", &options]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_leaves_a_store_that_is_whole() {
    let remote = Remote::new();
    for form in FORMS {
        let root = remote.engine.path(&format!("small-{form}"));
        let disk = Small::new(&root, "6m");
        let on_it = |args: &[&str]| {
            let mut command = remote.command(form, args);
            command.env("CORTEN_ROOT", &root);
            command.output().unwrap()
        };
        for _ in 0..2 {
            let pulled = on_it(&["pull", "-q", &remote.name]);
            let told = String::from_utf8_lossy(&pulled.stderr).into_owned();
            assert!(!pulled.status.success(), "{pulled:?}");
            assert!(told.contains("No space left"), "{told}");
            on_it(&["system", "check", "--repair"]);
            let check = on_it(&["system", "check"]);
            assert!(check.status.success(), "{form}: {check:?}");
        }
        disk.grow("100m");
        let pulled = on_it(&["pull", "-q", &remote.name]);
        assert!(pulled.status.success(), "{form}: {pulled:?}");
        let ran = on_it(&[
            "run",
            "--rm",
            "--network",
            "none",
            &remote.name,
            "sh",
            "-c",
            SUM,
        ]);
        assert_eq!(
            String::from_utf8_lossy(&ran.stdout).trim(),
            remote.sum,
            "{ran:?}"
        );
        let reset = on_it(&["system", "reset", "--force"]);
        assert!(reset.status.success(), "{reset:?}");
        drop(disk);
    }
}

/// What images hold is for containers, not for whoever has an account on the host.
/// What requests take of a server leaves what those need that free some.
#[test]
fn a_server_on_a_full_disk_frees_room() {
    let engine = Engine::new();
    let _disk = Small::new(&engine.root(), "32m");
    let files = [("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "f")];
    let context = engine.context("some", &files);
    engine.ok(["build", "-q", "-t", "some", context.to_str().unwrap()]);
    let (_server, host) = engine.serve();
    let filler = engine.root().join("fill");
    let fill = || {
        let mut file = fs::OpenOptions::new();
        let mut file = file.append(true).create(true).open(&filler).unwrap();
        for size in [65_536, 4096, 512] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
    };
    let mut tags = 0;
    loop {
        fill();
        let tag = format!("some:{tags}");
        let done = engine.run(["-H", &host, "tag", "some", &tag]);
        if done.code != 0 {
            assert!(done.stderr.contains("no space left"), "{done:?}");
            break;
        }
        tags += 1;
        assert!(tags < 1000, "the disk does not get full");
    }
    assert!(engine.root().join("corten.db-reserve").exists());
    engine.ok([
        "-H",
        &host,
        "rmi",
        "-f",
        &engine.ok(["-H", &host, "images", "-q", "some:latest"]),
    ]);
    engine.ok(["-H", &host, "system", "prune", "-af"]);
    assert_eq!(engine.ok(["-H", &host, "images", "-q"]), "");
    fs::remove_file(&filler).unwrap();
    engine.ok(["-H", &host, "volume", "create", "some"]);
    engine.ok(["-H", &host, "volume", "rm", "some"]);
    assert!(
        engine.root().join("corten.db-reserve").exists(),
        "it is kept back again"
    );
}

#[test]
fn others_on_the_host_see_no_layers_and_blobs() {
    use std::os::unix::fs::PermissionsExt;
    let engine = Engine::with_alpine();
    let root = engine.root();
    let mode = |name: &str| {
        let path = root.join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(""), 0o710);
    for name in ["blobs", "blobs/sha256", "layers", "tmp"] {
        assert_eq!(mode(name) & 0o007, 0, "{name} is {:o}", mode(name));
    }
    // Those that older versions made are closed by the next command.
    let open = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    open("", 0o711);
    for name in ["blobs", "layers", "tmp"] {
        open(name, 0o755);
    }
    let run = [
        "run",
        "--rm",
        "--user",
        "65534:65534",
        "alpine",
        "cat",
        "/etc/group",
    ];
    assert!(
        engine.ok(run).starts_with("root:x:0"),
        "containers do not pass there"
    );
    assert_eq!(mode(""), 0o710);
    for name in ["blobs", "layers", "tmp"] {
        assert_eq!(mode(name), 0o750, "{name}");
    }
    // A directory that was given to us may be shared.
    open("", 0o755);
    open("tmp", 0o1777);
    engine.ok(["images"]);
    assert_eq!(mode(""), 0o755);
    assert_eq!(mode("tmp"), 0o777);
}
