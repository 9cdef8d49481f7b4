//! `--output`, `--load`, `--push`: what becomes of the result.

use std::path::{Path, PathBuf};

use super::image_form::{ImageForm, truth};
use crate::app::Cli;
use crate::client::{BodyReader, Call, name};
use crate::error::{CliError, Result};
use crate::flags::Parsed;
use crate::output::Output as Archive;
use crate::progress::stream::{self, Sink};
use crate::run::image::{auth_header, reference};
use crate::term;

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// The image stays in the store, as it does without `--output`.
    Image {
        /// More names for it.
        names: Vec<String>,
        /// And is pushed by all its names.
        push: bool,
        /// The names are repositories, where it is pushed without a tag.
        by_digest: bool,
    },
    /// Files in a directory.
    Directory(PathBuf),
    /// Files as a tar; `None`: to standard output.
    Tar(Option<PathBuf>),
    /// The image as an archive of `docker save`, which is an OCI layout too.
    Archive(Option<PathBuf>),
    /// The same, as the files of a directory.
    Layout(PathBuf),
    /// Nothing: only the cache is wanted.
    Nothing,
}

/// All outputs of a build.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outputs {
    list: Vec<Output>,
    form: ImageForm,
}

impl Outputs {
    /// What the flags ask for.
    pub(super) fn of(flags: &Parsed, here: &Path) -> Result<Self> {
        let (mut outputs, mut form) = (Vec::new(), ImageForm::default());
        for text in flags.list("output") {
            let (output, wish) = parse(text, here)?;
            form.join(wish).map_err(|name| {
                CliError::message(format!(
                    "--output: {name} must be the same for all outputs: they have the same layers"
                ))
            })?;
            outputs.push(output);
        }
        if flags.on("push") {
            if flags.on("load") && outputs.is_empty() {
                return Err(CliError::message(
                    "push and load may not be set together at the moment",
                ));
            }
            match outputs.iter_mut().find_map(|output| match output {
                Output::Image { push, .. } => Some(push),
                _ => None,
            }) {
                Some(push) => *push = true,
                None => outputs.push(Output::Image {
                    names: Vec::new(),
                    push: true,
                    by_digest: false,
                }),
            }
        }
        let outputs = Self {
            list: outputs,
            form,
        };
        let to_stdout =
            |output: &&Output| matches!(output, Output::Tar(None) | Output::Archive(None));
        if outputs.list.iter().filter(to_stdout).count() > 1 {
            return Err(CliError::message(
                "--output: only one of them can go to standard output",
            ));
        }
        if outputs.list.iter().any(|output| to_stdout(&output)) && term::stdout_is_terminal() {
            return Err(CliError::message(
                "dest file is required for this exporter. refusing to write to console",
            ));
        }
        Ok(outputs)
    }

    /// Whether there is to be an image.
    pub(super) fn image(&self) -> bool {
        let files = |output: &Output| {
            matches!(
                output,
                Output::Directory(_) | Output::Tar(_) | Output::Nothing
            )
        };
        self.list.is_empty() || !self.list.iter().all(files)
    }

    /// What form the image has.
    pub(super) fn form(&self) -> &ImageForm {
        &self.form
    }

    /// Further names of the image.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.list
            .iter()
            .filter_map(|output| match output {
                Output::Image {
                    names,
                    by_digest: false,
                    ..
                } => Some(names.iter().map(String::as_str)),
                _ => None,
            })
            .flatten()
    }

    /// Whether an image is to be pushed without a tag.
    pub(super) fn by_digest(&self) -> bool {
        let by_digest =
            |output: &Output| matches!(output, Output::Image { by_digest, .. } if *by_digest);
        self.list.iter().any(by_digest)
    }

    /// Outputs of files, as the engine is told of them.
    pub(super) fn files(&self) -> Vec<(&'static str, PathBuf)> {
        self.list
            .iter()
            .filter_map(|output| match output {
                Output::Directory(path) => Some(("directory", path.clone())),
                Output::Tar(Some(path)) => Some(("tar", path.clone())),
                Output::Tar(None) => Some(("stdout", PathBuf::new())),
                _ => None,
            })
            .collect()
    }

    /// Pushes the image and writes archives of it, once it is built. The digest that a registry
    /// knows it by, if it was pushed.
    pub(super) async fn finish(
        &self,
        cli: &Cli,
        image: &str,
        tags: &[String],
    ) -> Result<Option<String>> {
        let mut digest = None;
        for output in &self.list {
            match output {
                Output::Image {
                    push: true,
                    by_digest: true,
                    names,
                } => {
                    if let Some(tag) = tags.first() {
                        return Err(CliError::message(format!(
                            "ERROR: can't push tagged ref {tag} by digest"
                        )));
                    }
                    if names.is_empty() {
                        return Err(CliError::message(
                            "ERROR: a name is needed when pushing to registry",
                        ));
                    }
                    for repository in names {
                        digest = push(cli, repository, Some(image)).await?.or(digest);
                    }
                }
                Output::Image { push: true, .. } => {
                    if tags.is_empty() {
                        return Err(CliError::message(
                            "ERROR: tag is needed when pushing to registry",
                        ));
                    }
                    for tag in tags {
                        digest = push(cli, tag, None).await?.or(digest);
                    }
                }
                Output::Archive(path) => {
                    let path = path.as_ref().map(|path| path.to_string_lossy());
                    let archive = Archive::open(path.as_deref(), "export image")?;
                    let call = saved(cli, image, tags)?;
                    archive.receive(call.send().await?.reader()).await?;
                }
                Output::Layout(directory) => {
                    let call = saved(cli, image, tags)?;
                    unpack(call.send().await?.reader(), directory).await?;
                }
                _ => {}
            }
        }
        Ok(digest)
    }
}

/// A request for an archive of the image.
fn saved<'c>(cli: &'c Cli, image: &str, tags: &[String]) -> Result<Call<'c>> {
    let mut call = cli.client()?.get("/images/get");
    if tags.is_empty() {
        call = call.query("names", image);
    }
    for tag in tags {
        call = call.query("names", tag);
    }
    Ok(call)
}

/// Unpacks an archive of ours while it comes.
async fn unpack(mut from: BodyReader, directory: &Path) -> Result {
    let failed = |source| CliError::File {
        action: "write",
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let into = directory.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Archive::new(reader);
        archive.set_preserve_mtime(false);
        archive.unpack(&into)?;
        // What is behind the archive's end.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink())
    });
    let mut writer =
        tokio::net::unix::pipe::Sender::from_owned_fd(writer.into()).map_err(failed)?;
    let sent = async {
        use tokio::io::AsyncWriteExt as _;
        while let Some(bytes) = from.next().await? {
            writer.write_all(&bytes).await?;
        }
        drop(writer);
        Ok(())
    };
    let sent: Result = sent.await;
    let unpacked = unpacking.await.map_err(std::io::Error::from);
    // Why it was not written says more than that it could not be sent.
    match unpacked {
        Ok(Err(error)) | Err(error)
            if sent.is_ok() || error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            Err(failed(error))
        }
        _ => sent,
    }
}

/// Pushes one name, or an image by its digest to the repository that is named; the manifest's
/// digest.
async fn push(cli: &Cli, named: &str, by_digest: Option<&str>) -> Result<Option<String>> {
    let image = reference(named)?;
    let repository = match by_digest {
        Some(_) => image.familiar(),
        None => image.familiar_name(),
    };
    let image = image.or_latest();
    let mut call = cli
        .client()?
        .post(format!("/images/{}/push", name(&repository)))
        .header("X-Registry-Auth", auth_header(cli, &image));
    call = match by_digest {
        Some(id) => call.query("by-digest", id),
        None => call.query("tag", image.tag().unwrap_or_default()),
    };
    let aux = stream::outcome(call.lines().await?, Sink::nothing()).await?;
    let digest = aux.as_ref().and_then(|aux| aux.get("Digest")?.as_str());
    Ok(digest.map(str::to_owned))
}

/// An output, and what it says of the image's form.
fn parse(text: &str, here: &Path) -> Result<(Output, ImageForm)> {
    let wrong = |why: String| {
        CliError::message(format!(
            "invalid argument \"{text}\" for \"-o, --output\" flag: {why}"
        ))
    };
    if !text.contains('=') {
        let output = match text {
            "-" => Output::Tar(None),
            "" => return Err(wrong("it names no directory".to_owned())),
            directory => Output::Directory(here.join(directory)),
        };
        return Ok((output, ImageForm::default()));
    }
    let truth = |key: &str, value: &str| truth(key, value).map_err(wrong);
    let (mut form, mut tar) = (ImageForm::default(), true);
    let (mut kind, mut dest, mut names, mut push) = (None, None, Vec::new(), false);
    let (mut by_digest, mut canonical) = (false, false);
    for field in fields(text) {
        let Some((key, value)) = field.split_once('=') else {
            return Err(wrong(format!("invalid value {field}")));
        };
        let key = key.trim();
        if let Some(taken) = form.take(key, value) {
            taken.map_err(wrong)?;
            continue;
        }
        match key.to_lowercase().as_str() {
            "type" => kind = Some(value.to_owned()),
            "dest" => dest = Some(value.to_owned()),
            "name" => names.extend(value.split(',').map(str::to_owned)),
            "push" => push = truth("push", value)?,
            "tar" => tar = truth("tar", value)?,
            // These say what is so here anyway.
            "unpack" | "store" if matches!(value, "true" | "1") => {}
            "push-by-digest" => by_digest = truth("push-by-digest", value)?,
            "name-canonical" => canonical = truth("name-canonical", value)?,
            "context" if value == "default" => {}
            key @ ("unpack" | "store" | "context") => {
                return Err(wrong(format!("{key}={value} is not supported")));
            }
            key => return Err(wrong(format!("{key} is not supported"))),
        }
    }
    let kind = kind.ok_or_else(|| wrong("type is required for output".to_owned()))?;
    let file = |dest: Option<String>| dest.filter(|d| d != "-").map(|d| here.join(d));
    let no_dest = |dest: Option<String>| match dest {
        None => Ok(()),
        Some(_) => Err(wrong(format!("dest is not supported by type {kind}"))),
    };
    if form.rewrite.is_some() && matches!(kind.as_str(), "local" | "tar") {
        return Err(wrong(format!(
            "rewrite-timestamp is not supported by type {kind}: its files are always of \
             SOURCE_DATE_EPOCH"
        )));
    }
    if !form.is_empty() && matches!(kind.as_str(), "local" | "tar" | "cacheonly") {
        return Err(wrong(format!(
            "type {kind} makes no image: it has no compression, media types or annotations"
        )));
    }
    let layout = |dest: Option<String>| match dest.filter(|dest| dest != "-") {
        Some(dest) => Ok(Output::Layout(here.join(dest))),
        None => Err(wrong("tar=false needs a directory as dest".to_owned())),
    };
    if !tar && !matches!(kind.as_str(), "oci" | "docker") {
        return Err(wrong(format!("tar=false is not supported by type {kind}")));
    }
    // By its digest an image is known here only to the repositories that it was pushed to.
    let pushes = kind == "registry" || (kind == "image" && push);
    if canonical && !pushes {
        return Err(wrong(
            "name-canonical=true is not supported without a push".to_owned(),
        ));
    }
    if by_digest && !matches!(kind.as_str(), "image" | "registry") {
        return Err(wrong(format!(
            "push-by-digest is not supported by type {kind}"
        )));
    }
    let output = match kind.as_str() {
        "oci" | "docker" if !tar => layout(dest)?,
        "cacheonly" => {
            no_dest(dest)?;
            Output::Nothing
        }
        "local" => match dest {
            Some(dest) if dest == "-" => {
                return Err(wrong("dest cannot be stdout for local exporter".to_owned()));
            }
            Some(dest) => Output::Directory(here.join(dest)),
            None => return Err(wrong("dest is required for local exporter".to_owned())),
        },
        "tar" => Output::Tar(file(dest)),
        "oci" => Output::Archive(file(dest)),
        "docker" if dest.is_some() => Output::Archive(file(dest)),
        "docker" => Output::Image {
            names,
            push: false,
            by_digest: false,
        },
        "image" => {
            no_dest(dest)?;
            Output::Image {
                names,
                push,
                by_digest,
            }
        }
        "registry" => {
            no_dest(dest)?;
            Output::Image {
                names,
                push: true,
                by_digest,
            }
        }
        other => return Err(wrong(format!("exporter {other:?} could not be found"))),
    };
    Ok((output, form))
}

/// Comma-separated; a field in double quotes may contain commas.
pub(super) fn fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => {
                if let Some(last) = fields.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> std::result::Result<Output, String> {
        let parsed = parse(text, Path::new("/here")).map_err(|e| e.to_string());
        parsed.map(|(output, _)| output)
    }

    #[test]
    fn kinds() {
        let path = |text: &str| Some(PathBuf::from(text));
        let image = |names: &[&str], push| Output::Image {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            push,
            by_digest: false,
        };
        let by_digest = Output::Image {
            names: vec!["a".to_owned()],
            push: true,
            by_digest: true,
        };
        for (text, output) in [
            ("out", Output::Directory("/here/out".into())),
            ("-", Output::Tar(None)),
            ("type=local,dest=/abs", Output::Directory("/abs".into())),
            ("type=tar,dest=x.tar", Output::Tar(path("/here/x.tar"))),
            ("type=tar", Output::Tar(None)),
            ("type=oci,dest=-", Output::Archive(None)),
            (
                "type=docker,dest=i.tar",
                Output::Archive(path("/here/i.tar")),
            ),
            ("type=docker", image(&[], false)),
            (
                "type=image,\"name=a,b\",push=true",
                image(&["a", "b"], true),
            ),
            ("type=registry", image(&[], true)),
            (
                "type=image,name=a,push=true,push-by-digest=true,name-canonical=true",
                by_digest,
            ),
            (
                "type=oci,tar=false,dest=x",
                Output::Layout("/here/x".into()),
            ),
            ("type=cacheonly", Output::Nothing),
            (
                "type=image,compression=zstd,compression-level=3",
                image(&[], false),
            ),
        ] {
            assert_eq!(one(text).unwrap(), output, "{text}");
        }
        for (text, why) in [
            ("dest=x", "type is required for output"),
            ("type=local", "dest is required for local exporter"),
            ("type=local,dest=-", "dest cannot be stdout"),
            ("type=nothing", "exporter \"nothing\" could not be found"),
            (
                "type=image,compression=lzma",
                "unsupported layer compression type",
            ),
            ("type=tar,compression=zstd", "type tar makes no image"),
            ("type=oci,tar=false", "tar=false needs a directory"),
            ("type=image,tar=false", "tar=false is not supported"),
            (
                "type=image,name=x,name-canonical=true",
                "name-canonical=true is not supported without a push",
            ),
            (
                "type=docker,push-by-digest=true",
                "push-by-digest is not supported by type docker",
            ),
            (
                "type=cacheonly,dest=x",
                "dest is not supported by type cacheonly",
            ),
            ("type=image,store=false", "store=false is not supported"),
            ("type=docker,context=far", "context=far is not supported"),
            ("type=image,push=yes", "\"yes\" of push is neither"),
            (
                "type=image,rewrite-timestamp=x",
                "\"x\" of rewrite-timestamp is neither",
            ),
            (
                "type=tar,rewrite-timestamp=false",
                "not supported by type tar",
            ),
            ("type=image,dest=x", "dest is not supported by type image"),
        ] {
            assert!(one(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn files_alone_make_no_image() {
        let outputs = |list: &[&str]| Outputs {
            list: list.iter().map(|t| one(t).unwrap()).collect(),
            form: ImageForm::default(),
        };
        assert!(outputs(&[]).image());
        assert!(!outputs(&["out", "-"]).image());
        assert!(!outputs(&["type=cacheonly"]).image());
        assert!(outputs(&["out", "type=image,name=x"]).image());
        let files = outputs(&["out", "-"]).files();
        assert_eq!(files[0], ("directory", "/here/out".into()));
        assert_eq!(files[1], ("stdout", PathBuf::new()));
    }
}
