//! Keys that OpenSSH and OpenSSL make, used by OpenSSH.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use super::*;

fn run(program: &str, args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    let done = command.output();
    done.unwrap_or_else(|error| panic!("{program} (Debian: openssh-client, openssl): {error}"))
}

fn well(program: &str, args: &[&str], dir: &Path) -> String {
    let done = run(program, args, dir);
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn agent(dir: &Path, names: &[&str]) -> Served {
    let mut keys = Keys::default();
    for name in names {
        keys.add(&dir.join(name)).unwrap();
    }
    Served::new(keys).unwrap()
}

fn asking(agent: &Served, program: &str, args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    command.env("SSH_AUTH_SOCK", agent.path()).output().unwrap()
}

/// Makes a key with ssh-keygen, `name` and `name.pub`.
fn keygen(dir: &Path, name: &str, more: &[&str]) {
    let mut args = vec!["-q", "-f", name];
    args.extend(if more.contains(&"-N") {
        &[][..]
    } else {
        &["-N", ""]
    });
    args.extend(more);
    well("ssh-keygen", &args, dir);
}

#[test]
fn every_kind_of_key_signs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let kinds: [(&str, &[&str]); 11] = [
        ("ed25519", &["-t", "ed25519"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsa-pkcs8", &["-t", "rsa", "-b", "3072", "-m", "PKCS8"]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p256-pem", &["-t", "ecdsa", "-b", "256", "-m", "PEM"]),
        ("p384-pkcs8", &["-t", "ecdsa", "-b", "384", "-m", "PKCS8"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("p521-pem", &["-t", "ecdsa", "-b", "521", "-m", "PEM"]),
        ("p521-pkcs8", &["-t", "ecdsa", "-b", "521", "-m", "PKCS8"]),
    ];
    let mut names: Vec<&str> = Vec::new();
    for (name, how) in kinds {
        keygen(dir, name, how);
        names.push(name);
    }
    // OpenSSL writes no public key beside an Ed25519 key in PKCS #8.
    well(
        "openssl",
        &["genpkey", "-algorithm", "ed25519", "-out", "openssl"],
        dir,
    );
    names.push("openssl");
    let agent = agent(dir, &names);

    let listed = asking(&agent, "ssh-add", &["-L"], dir);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!(listed.len(), names.len());
    // What it says of the one that has no public file.
    std::fs::write(dir.join("openssl.pub"), listed[kinds.len()]).unwrap();

    std::fs::write(dir.join("text"), "what is signed").unwrap();
    for (name, line) in names.iter().zip(listed) {
        let public = format!("{name}.pub");
        let written = std::fs::read_to_string(dir.join(&public)).unwrap();
        let same = written
            .split(' ')
            .take(2)
            .eq(line.trim().split(' ').take(2));
        assert!(same, "{name}: {line} is not {written}");
        // Away with the private key: only the agent has it now.
        std::fs::remove_file(dir.join(name)).unwrap();
        let signed = asking(
            &agent,
            "ssh-keygen",
            &["-Y", "sign", "-f", &public, "-n", "file", "text"],
            dir,
        );
        assert!(signed.status.success(), "{name}: {signed:?}");
        std::fs::write(dir.join("allowed"), format!("me {line}\n")).unwrap();
        let verify = "ssh-keygen -Y verify -f allowed -I me -n file -s text.sig < text";
        well("sh", &["-c", verify], dir);
        // The same check of another text fails.
        let other = verify.replace("< text", "< allowed");
        assert!(!run("sh", &["-c", &other], dir).status.success(), "{name}");
        std::fs::remove_file(dir.join("text.sig")).unwrap();
    }
}

#[test]
fn keys_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let sealed = &["-t", "ed25519", "-N", "secret"];
    keygen(dir, "sealed", sealed);
    keygen(
        dir,
        "sealed-pem",
        &["-t", "rsa", "-m", "PEM", "-N", "secret"],
    );
    keygen(
        dir,
        "sealed-pkcs8",
        &["-t", "rsa", "-m", "PKCS8", "-N", "secret"],
    );
    keygen(dir, "p521", &["-t", "ecdsa", "-b", "521"]);
    keygen(dir, "short", &["-t", "rsa", "-b", "1024"]);
    keygen(dir, "short-pem", &["-t", "rsa", "-b", "1024", "-m", "PEM"]);
    std::fs::write(dir.join("text"), "no key").unwrap();
    let whole = std::fs::read_to_string(dir.join("p521")).unwrap();
    std::fs::write(dir.join("half"), &whole[..whole.len() / 2]).unwrap();
    for (name, why) in [
        ("sealed", "passphrase protected"),
        ("sealed-pem", "passphrase protected"),
        ("sealed-pkcs8", "passphrase protected"),
        ("short", "RSA, shorter keys are not supported"),
        ("short-pem", "RSA, shorter keys are not supported"),
        ("text", "no key found"),
        ("short.pub", "no key found"),
        ("half", "invalid private key"),
        ("none", "failed to open"),
    ] {
        let error = Keys::default().add(&dir.join(name)).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn only_lists_and_signs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    keygen(dir, "key", &["-t", "ed25519"]);
    keygen(dir, "rsa", &["-t", "rsa", "-b", "2048"]);
    let agent = agent(dir, &["key"]);
    for args in [&["rsa"][..], &["-D"], &["-d", "key.pub"], &["-X"]] {
        let mut command = Command::new("ssh-add");
        command.args(args).current_dir(dir);
        let done = command.env("SSH_AUTH_SOCK", agent.path());
        let done = done.stdin(std::process::Stdio::null()).output().unwrap();
        assert!(!done.status.success(), "{args:?}: {done:?}");
    }
    let listed = asking(&agent, "ssh-add", &["-l"], dir);
    let fingerprint = well("ssh-keygen", &["-l", "-f", "key.pub"], dir);
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(fingerprint), "{listed}");
    assert_eq!(listed.lines().count(), 1);
    let path = agent.path();
    drop(agent);
    assert!(UnixStream::connect(path).is_err());
}

#[test]
fn strange_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), "key", &["-t", "rsa", "-b", "2048"]);
    let mut keys = Keys::default();
    keys.add(&dir.path().join("key")).unwrap();
    let blob = keys.0[0].blob().to_vec();
    let sign = |flags: &[u8]| {
        let mut request = vec![13];
        protocol::string(&mut request, &blob);
        protocol::string(&mut request, b"data");
        request.extend(flags);
        request
    };
    let answer = |request: &[u8]| protocol::answer(&keys, request);
    assert_eq!(answer(&sign(&[0, 0, 0, 4]))[0], 14);
    let refused = [
        // SHA-1, no flags, too many.
        sign(&[0, 0, 0, 0]),
        sign(&[]),
        sign(&[0, 0, 0, 4, 0]),
        vec![],
        vec![11, 0],
        vec![13],
        vec![13, 0xff, 0xff, 0xff, 0xff],
        vec![13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![27],
    ];
    for request in refused {
        assert_eq!(answer(&request), [5], "{request:?}");
    }
    // One that is too long ends the connection.
    let agent = Served::new(keys).unwrap();
    let mut stream = UnixStream::connect(agent.path()).unwrap();
    use std::io::{Read as _, Write as _};
    stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn many_connections() {
    let agent = Arc::new(Served::new(Keys::default()).unwrap());
    let dir = Path::new("/");
    for _ in 0..3 {
        let asked: Vec<_> = (0..10)
            .map(|_| {
                let agent = agent.clone();
                std::thread::spawn(move || asking(&agent, "ssh-add", &["-l"], dir))
            })
            .collect();
        for asked in asked {
            // ssh-add's status where an agent has no keys.
            assert_eq!(asked.join().unwrap().status.code(), Some(1));
        }
    }
}

#[test]
fn nobody_is_served_after_its_end() {
    use std::io::{Read as _, Write as _};

    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), "key", &["-t", "ed25519"]);
    let agent = agent(dir.path(), &["key"]);
    let mut client = UnixStream::connect(agent.path()).unwrap();
    let list = [0, 0, 0, 1, 11];
    client.write_all(&list).unwrap();
    let mut length = [0; 4];
    client.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], 12);
    drop(agent);
    client.write_all(&list).ok();
    assert_eq!(client.read(&mut length).unwrap_or(0), 0);
}
