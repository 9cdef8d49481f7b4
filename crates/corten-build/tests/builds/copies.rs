//! COPY and ADD: owners and modes, archives.

use corten_build::{BuildRequest, Context};

use super::Fixture;

pub(super) fn copies(f: &Fixture) {
    f.file("one", "1");
    f.file("d/two", "2");
    f.file("d/e/three", "3");
    std::os::unix::fs::symlink("two", f.dir.path().join("context/d/link")).unwrap();
    let told = f.build(
        "FROM base AS a\nRUN mkdir /real && echo old > /real/one && \
         busybox ln -s real /alias && busybox chown 5:6 /real/one\n\
         COPY --chown=app --chmod=600 one /alias/\nCOPY d /d\nCOPY --chown=app:extra d/e /x/y\n\
         COPY one /real\nCOPY <<F /made/f\nhello\nF\nCOPY --parents d/e/three /p/\n\
         COPY --exclude=link d /q/\n\
         FROM scratch\nCOPY --from=a /real /d /made /keep/\nCOPY --from=a /x /x\n\
         COPY --from=a /p /p\nCOPY --from=a /q /q\nCOPY --from=base /etc/group /g\n\
         COPY --link one /linked/\n",
    );
    let image = f.image(&told);
    assert_eq!(
        f.content(&image, ""),
        [
            "g 644 0:0 extra:x:7:app",
            "keep 755 0:0 /",
            "keep/e 755 0:0 /",
            "keep/e/three 644 0:0 3",
            "keep/f 644 0:0 hello",
            "keep/link 777 0:0 -> two",
            "keep/one 644 0:0 1",
            "keep/two 644 0:0 2",
            "linked 755 0:0 /",
            "linked/one 644 0:0 1",
            "p 755 0:0 /",
            "p/d 755 0:0 /",
            "p/d/e 755 0:0 /",
            "p/d/e/three 644 0:0 3",
            "q 755 0:0 /",
            "q/e 755 0:0 /",
            "q/e/three 644 0:0 3",
            "q/two 644 0:0 2",
            // As BuildKit makes destinations, whoever owns the directory.
            "x 755 0:0 /",
            "x/y 755 1000:7 /",
            "x/y/three 644 1000:7 3",
        ]
    );
}

pub(super) fn archives(f: &Fixture) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(3);
    header.set_gid(4);
    header.set_mtime(1);
    header.set_size(2);
    builder
        .append_data(&mut header, "in/side", &b"hi"[..])
        .unwrap();
    let tar = builder.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    f.file("a.tgz", gzip.finish().unwrap());
    f.file("plain.gz", "not an archive");
    let told = f.build("FROM scratch\nADD a.tgz plain.gz /u/\nCOPY a.tgz /c/\n");
    let lines = f.content(&f.image(&told), "");
    let paths: Vec<_> = lines
        .iter()
        .map(|l| l.split(' ').take(3).collect::<Vec<_>>())
        .collect();
    assert_eq!(paths[0], ["c", "755", "0:0"]);
    assert_eq!(
        paths[3..6],
        [
            ["u/in", "755", "0:0"],
            ["u/in/side", "755", "3:4"],
            ["u/plain.gz", "644", "0:0"]
        ]
    );
    // A context that is itself an archive.
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in [
        ("Dockerfile", "FROM scratch\nCOPY x /y\n"),
        ("x", "from tar"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_size(text.len() as u64);
        builder
            .append_data(&mut header, name, text.as_bytes())
            .unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let request = || BuildRequest {
        context: Context::Tar(Box::new(std::io::Cursor::new(tar.clone()))),
        ..BuildRequest::default()
    };
    let told = f.run(request());
    assert_eq!(f.content(&f.image(&told), ""), ["y 640 0:0 from tar"]);
    assert_eq!(f.run(request()).carried_out(), [""; 0]);
}
