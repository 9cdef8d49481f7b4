//! SOURCE_DATE_EPOCH: builds that come out the same wherever and whenever they are made.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::harness::{Engine, serve_files};

const DOCKERFILE: &str = "\
FROM alpine AS one
RUN mkdir -p /made/d && echo made > /made/f && ln -s f /made/l && ln /made/f /made/h && mkfifo /made/p
WORKDIR /work/dir
COPY --chmod=640 a d /copied/
FROM alpine
ARG SITE
COPY --from=one /made /made
COPY --from=one /copied /copied
COPY --link a /linked/
ADD packed.tar /unpacked/
ADD $SITE/file.txt /fetched/
COPY <<here /text
words
here
RUN --mount=type=bind,source=a,target=/a rm /bin/true && mkdir /bin/d && cat /a > /etc/a
RUN touch -d @5 /old && chown 1:1 /text
";

/// 2001-09-09, later than some files and earlier than others.
const EPOCH: &str = "1000000000";

struct Built {
    id: String,
    archive: Vec<u8>,
    /// `%Y NAME` of some files.
    times: String,
}

/// Builds with an engine of its own.
fn build(site: &str, age: u64, flags: &[&str]) -> Built {
    let engine = Engine::with_alpine();
    let packed = engine.path("packed");
    fs::create_dir(&packed).unwrap();
    fs::write(packed.join("member"), "member\n").unwrap();
    let context = engine.context(
        "dated",
        &[("Dockerfile", DOCKERFILE), ("a", "a\n"), ("d/b", "b\n")],
    );
    let changed = SystemTime::now() - Duration::from_secs(age);
    for file in ["a", "d/b", "d"] {
        let file = fs::File::open(context.join(file)).unwrap();
        file.set_modified(changed).unwrap();
    }
    let tarred = std::process::Command::new("tar")
        .arg("-cf")
        .arg(context.join("packed.tar"))
        .args(["--sort=name", "--mtime=@2000000000", "-C"])
        .arg(&packed)
        .arg("member")
        .status();
    assert!(tarred.unwrap().success());
    let archive = engine.path("image.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let site = format!("SITE={site}");
    let mut command = engine.command(["build", "--progress=plain", "-t", "dated"]);
    command.args(["--build-arg", &site, "-o", &output]);
    command.args(flags).arg(&context);
    let done = command.env("SOURCE_DATE_EPOCH", EPOCH).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let list = "stat -c '%Y %n' /made/f /made/l /made/d /copied/b /linked/a /unpacked/member \
                /fetched/file.txt /text /bin/d /etc/a /old /bin";
    Built {
        id: engine.ok(["inspect", "-f", "{{.Id}}", "dated"]),
        archive: fs::read(archive).unwrap(),
        times: engine.ok([
            "run",
            "--rm",
            "--network",
            "none",
            "dated",
            "sh",
            "-c",
            list,
        ]),
    }
}

fn site(dir: &Path) -> String {
    fs::write(dir.join("file.txt"), "from afar\n").unwrap();
    serve_files(dir.to_owned())
}

#[test]
fn two_machines_make_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path());
    let (first, second) = (build(&site, 3600, &[]), build(&site, 60, &[]));
    assert_eq!(first.times, second.times);
    for line in first.times.lines() {
        let (time, name) = line.split_once(' ').unwrap();
        match name {
            "/old" => assert_eq!(time, "5"),
            // The server says so.
            "/fetched/file.txt" => assert_eq!(time, "784111777"),
            _ => assert_eq!(time, EPOCH, "{line}"),
        }
    }
    assert_eq!(first.id, second.id);
    assert!(first.archive == second.archive, "the archives differ");

    // Where it is not wanted, files keep their times.
    let kept = "type=image,rewrite-timestamp=false";
    let third = build(&site, 60, &["-o", kept]);
    assert_ne!(third.id, first.id);
    assert!(
        !third.times.contains(&format!("{EPOCH} /made/f")),
        "{}",
        third.times
    );
}

#[test]
fn the_date_is_part_of_the_result() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "asked",
        &[(
            "Dockerfile",
            "ARG SOURCE_DATE_EPOCH=77\nFROM alpine\nRUN echo > /f\nFROM scratch\nCOPY --from=0 /f /f\n",
        )],
    );
    let context = context.to_str().unwrap();
    let created = |flags: &[&str]| {
        let mut args = vec!["build", "-q", "-t", "asked", context];
        args.extend(flags);
        engine.ok(args);
        engine.ok(["inspect", "-f", "{{.Id}} {{.Created}}", "asked"])
    };
    // The Dockerfile may say it, the command line has the last word.
    let own = created(&[]);
    assert!(own.ends_with("1970-01-01T00:01:17Z"), "{own}");
    let given = created(&["--build-arg", "SOURCE_DATE_EPOCH=78"]);
    assert!(given.ends_with("1970-01-01T00:01:18Z"), "{given}");
    // What another date left in the cache is not taken for this one's.
    assert_eq!(created(&[]), own);
    let undated = created(&["--build-arg", "SOURCE_DATE_EPOCH="]);
    assert!(!undated.contains(" 1970-"), "{undated}");

    // Files of an output are all of that time.
    let out = engine.path("out");
    let tar = engine.path("out.tar");
    let to_tar = format!("type=tar,dest={}", tar.display());
    engine.ok([
        "build",
        "-q",
        "-o",
        out.to_str().unwrap(),
        "-o",
        &to_tar,
        context,
    ]);
    let changed = fs::metadata(out.join("f")).unwrap().modified().unwrap();
    assert_eq!(changed, SystemTime::UNIX_EPOCH + Duration::from_secs(77));
    let listed = std::process::Command::new("tar")
        .args(["-tv", "--utc", "-f"])
        .arg(&tar)
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("1970-01-01 00:01 f"), "{listed}");

    let wrong = engine.fails(
        1,
        ["build", "--build-arg", "SOURCE_DATE_EPOCH=soon", context],
    );
    assert!(wrong.contains("invalid SOURCE_DATE_EPOCH: soon"), "{wrong}");
    let warned = [
        "build",
        "--build-arg",
        "SOURCE_DATE_EPOCH=",
        "-o",
        "type=image,rewrite-timestamp=true",
    ];
    let done = engine.run(warned.iter().chain(&[context]));
    assert!(
        done.stderr.contains("no SOURCE_DATE_EPOCH was found"),
        "{done:?}"
    );
    engine.assert_clean();
}

#[test]
fn the_date_may_be_the_contexts() {
    let engine = Engine::with_alpine();
    let made = engine.context(
        "tar",
        &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "a\n")],
    );
    let site = tempfile::tempdir().unwrap();
    let tar = site.path().join("context.tar");
    let tarred = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .args(["--mtime=@86400", "-C"])
        .arg(&made)
        .args(["Dockerfile", "a"])
        .status();
    assert!(tarred.unwrap().success());
    let archive = fs::read(&tar).unwrap();
    let url = format!("{}/context.tar", serve_files(site.path().to_owned()));
    let asked = [
        "build",
        "-q",
        "-t",
        "of",
        "--build-arg",
        "SOURCE_DATE_EPOCH=context",
    ];
    let created = || engine.ok(["inspect", "-f", "{{.Created}}", "of"]);
    engine.ok(asked.iter().chain(&[url.as_str()]));
    assert_eq!(created(), "1994-11-06T08:49:37Z");
    let mut words = asked.to_vec();
    words.push("-");
    let done = engine.run_with_input::<7>(words.try_into().unwrap(), &archive);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(created(), "1970-01-02T00:00:00Z");
    // Files that are here have no time to speak of.
    engine.ok(asked.iter().chain(&[made.to_str().unwrap()]));
    assert!(!created().starts_with("19"));
    engine.assert_clean();
}
