//! What may help whoever's build has failed: one line below the Dockerfile's. A hint is given only
//! where what failed leaves little doubt.

use corten_dockerfile::{Dockerfile, suggest};
use corten_oci::ImageRef;

/// What is often in Dockerfiles.
const COMMON_IMAGES: [&str; 14] = [
    "alpine", "busybox", "centos", "debian", "fedora", "golang", "httpd", "mysql", "nginx", "node",
    "postgres", "python", "redis", "ubuntu",
];

/// Of a command: its words, its exit status and the end of its output.
pub(crate) fn of_command(process: &str, code: i64, output: &str) -> Option<String> {
    let has = |text: &str| output.contains(text);
    let shell = process.split(' ').next().unwrap_or_default();
    if code == 127 && has(&format!("exec: \"{shell}\"")) && process.contains(" -c ") {
        return Some(format!(
            "the image has no {shell}: write the command as a list (RUN [\"program\", \"argument\"]), \
             or take another base image"
        ));
    }
    let of_a_carriage_return = |line: &str| line.contains("\\r") && line.contains("not found");
    if output.lines().any(of_a_carriage_return)
        || has("^M: bad interpreter")
        || has("\r: not found")
    {
        return Some(
            "a script has Windows line endings: convert it (dos2unix, or git's autocrlf)"
                .to_owned(),
        );
    }
    if has("exec format error") || has("Exec format error") {
        return Some(
            "the file is a program for another platform, or a script whose first line is not #!"
                .to_owned(),
        );
    }
    if has("Unable to locate package") || has("has no installation candidate") {
        return Some(
            "lists of packages are not in images: RUN apt-get update && apt-get install …, in one \
             step, as one of its own is cached"
                .to_owned(),
        );
    }
    if has("Do you want to continue?") && has("Abort.") {
        return Some("nobody can answer: apt-get install -y".to_owned());
    }
    if has("unable to select packages") {
        return Some(
            "apk knows no such package: look for its name at pkgs.alpinelinux.org, and use apk add \
             --no-cache"
                .to_owned(),
        );
    }
    if has("No space left on device") {
        return Some(
            "the disk is full: system df tells of what, builder prune and image prune remove it"
                .to_owned(),
        );
    }
    let no_names = [
        "Temporary failure in name resolution",
        "Temporary failure resolving",
        "Could not resolve host",
        "bad address '",
    ];
    if no_names.iter().any(|text| has(text)) {
        return Some(
            "names cannot be resolved: a step has the servers of the host's resolv.conf, and none \
             with --network=none"
                .to_owned(),
        );
    }
    match code {
        127 => {
            let command = missing_command(output)?;
            Some(if command.contains('/') {
                format!(
                    "{command} is not there, or what its first line names (#!) or it is linked \
                     against is not"
                )
            } else {
                format!("{command} is not in the image, or not in PATH: install it in a step above")
            })
        }
        126 => Some("the file may not be executed: COPY --chmod=755, or RUN chmod +x".to_owned()),
        137 => Some(
            "the command was killed, as for want of memory: --memory is the limit of a step"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What a shell did not find: `/bin/sh: 1: foo: not found`, `bash: line 1: foo: command not found`,
/// or what we did not.
fn missing_command(output: &str) -> Option<&str> {
    let last = output.lines().rev().find(|line| !line.trim().is_empty())?;
    if let Some((_, rest)) = last.split_once("exec: \"") {
        return rest.split('"').next().filter(|name| !name.is_empty());
    }
    let before = last
        .strip_suffix(": command not found")
        .or_else(|| last.strip_suffix(": not found"))
        .or_else(|| last.strip_suffix(": No such file or directory"))?;
    let name = before.rsplit(": ").next()?;
    let plain = !name.is_empty() && !name.contains(char::is_whitespace);
    plain.then_some(name)
}

/// Of an image that cannot be had: a stage may have been meant, or another image.
pub(crate) fn of_image(image: &ImageRef, dockerfile: &Dockerfile) -> Option<String> {
    let name = image.familiar();
    let name = name.strip_suffix(":latest").unwrap_or(&name);
    let stages = dockerfile.stages.iter();
    let stages: Vec<(&str, u32)> = stages
        .filter_map(|stage| Some((stage.name.as_deref()?, stage.span.start)))
        .collect();
    if let Some((_, line)) = stages.iter().find(|(stage, _)| *stage == name) {
        return Some(format!(
            " (the stage {name} begins on line {line}: FROM takes stages above it)"
        ));
    }
    if COMMON_IMAGES.contains(&name) {
        return None;
    }
    let known: Vec<&str> = stages
        .iter()
        .map(|(stage, _)| *stage)
        .chain(COMMON_IMAGES)
        .collect();
    suggest(name, &known).map(|known| format!(" (did you mean {known}?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let sh = "/bin/sh -c x";
        for (process, code, output, expected) in [
            (
                sh,
                127,
                "/bin/sh: 1: foo: not found\n",
                "foo is not in the image",
            ),
            (
                sh,
                127,
                "bash: line 1: foo: command not found\n",
                "foo is not in the image",
            ),
            (
                sh,
                127,
                "/bin/sh: ./run: not found\n",
                "its first line names",
            ),
            (
                sh,
                127,
                "exec: \"/bin/sh\": stat /bin/sh: no such file or directory\n",
                "the image has no /bin/sh",
            ),
            (
                "foo -x",
                127,
                "exec: \"foo\": executable file not found in $PATH\n",
                "foo is not in",
            ),
            (sh, 126, "/bin/sh: ./x: Permission denied\n", "--chmod=755"),
            (sh, 1, "exec ./x: exec format error\n", "another platform"),
            (
                sh,
                100,
                "E: Unable to locate package curl\n",
                "apt-get update && apt-get install",
            ),
            (
                sh,
                1,
                "Do you want to continue? [Y/n] Abort.\n",
                "apt-get install -y",
            ),
            (
                sh,
                1,
                "ERROR: unable to select packages:\n  foo (no such package):\n",
                "apk add",
            ),
            (
                sh,
                127,
                "env: can't execute 'sh\\r': not found\n",
                "Windows line endings",
            ),
            (
                sh,
                1,
                "cp: write error: No space left on device\n",
                "builder prune",
            ),
            (sh, 1, "wget: bad address 'a.test'\n", "--network=none"),
            (sh, 137, "Killed\n", "--memory"),
        ] {
            let hint = of_command(process, code, output).unwrap_or_default();
            assert!(hint.contains(expected), "{output}: {hint}");
        }
        for (code, output) in [
            (1, ""),
            (2, "make: *** [all] Error 2\n"),
            (127, ""),
            (127, "x\n"),
            (1, "printf 'a\\r'\nlib: not found, going on\n"),
        ] {
            assert_eq!(of_command(sh, code, output), None, "{output}");
        }
    }

    #[test]
    fn images() {
        let text = "FROM alpine AS build\nFROM x\nFROM later\nFROM alpine AS later\n";
        let dockerfile = Dockerfile::parse(text).unwrap();
        let hint = |name: &str| of_image(&name.parse().unwrap(), &dockerfile).unwrap_or_default();
        assert_eq!(hint("biuld"), " (did you mean build?)");
        assert_eq!(hint("unbuntu"), " (did you mean ubuntu?)");
        assert!(hint("later").contains("the stage later begins on line 4"));
        assert_eq!(hint("alpine"), "");
        assert_eq!(hint("example.com/something"), "");
    }
}
