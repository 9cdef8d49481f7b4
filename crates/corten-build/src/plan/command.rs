//! RUN and COPY: from the syntax tree to complete operations.

use corten_dockerfile::{
    CommandLine, CopyInstruction, Device, ModeChange, RunInstruction, Span, scope,
};

use super::evaluate::Stage;
use super::{CopyOp, RemoteOp, RunOp, SCRIPTS};
use crate::error::BuildError;
use crate::remote::{Remote, masked};
use crate::request::StepNetworkMode;

impl Stage<'_> {
    /// RUN.
    pub(super) fn run(&self, run: &RunInstruction, span: Span) -> Result<RunOp, BuildError> {
        let insecure = self.security(run.security.as_deref(), span)?;
        let network = match &run.network {
            None => self.outline.settings.network,
            Some(word) => {
                let word = self.word(word, span)?;
                StepNetworkMode::parse(&word).map_err(|word| {
                    self.error(span, format!("unsupported network mode {word:?}"))
                })?
            }
        };
        let mut script = None;
        let args = match &run.command {
            CommandLine::Exec(args) if run.heredocs.is_empty() => args.clone(),
            CommandLine::Exec(_) => {
                return Err(self.error(span, "parsing produced an invalid run command"));
            }
            CommandLine::Shell(text) => match (run.heredocs.as_slice(), run.lone_heredoc()) {
                ([], _) => self.in_shell(text),
                (_, Some(only)) => {
                    if only.content.starts_with("#!") {
                        script = Some((only.name.clone(), only.content.clone()));
                        self.in_shell(&format!("{SCRIPTS}/{}", only.name))
                    } else {
                        self.in_shell(&only.content)
                    }
                }
                (several, None) => {
                    let mut full = text.clone();
                    for heredoc in several {
                        full.push('\n');
                        full.push_str(&heredoc.raw);
                        full.push_str(&heredoc.name);
                    }
                    self.in_shell(&full)
                }
            },
        };
        if args.is_empty() {
            return Err(self.error(span, "RUN requires at least one argument"));
        }
        let proxies = scope::PREDEFINED_PROXY_ARGS
            .iter()
            .filter(|name| self.scope.get(name).is_none())
            .filter_map(|name| {
                let value = self.outline.settings.build_args.get(*name)?.as_ref()?;
                Some(format!("{name}={value}"))
            })
            .collect();
        Ok(RunOp {
            args,
            env: self.scope.run_env(),
            proxies,
            user: self.config.user.clone(),
            cwd: self.workdir(),
            network,
            script,
            mounts: self.mounts(&run.mounts, span)?,
            insecure,
            devices: self.devices(&run.devices, span)?,
        })
    }

    /// The devices of a RUN, by their whole names: what it does not get does not matter to it.
    fn devices(&self, flags: &[String], span: Span) -> Result<Vec<String>, BuildError> {
        let mut wanted = Vec::new();
        for flag in flags {
            let device = Device::parse(flag).map_err(|message| self.error(span, message))?;
            wanted.push((device.name, device.required));
        }
        let settings = &self.outline.settings;
        crate::cdi::resolve(&settings.cdi, &wanted, &settings.allow_devices)
            .map_err(|message| self.error(span, message))
    }

    /// Whether a RUN is not confined.
    fn security(&self, word: Option<&str>, span: Span) -> Result<bool, BuildError> {
        match word {
            None | Some("sandbox") => Ok(false),
            Some("insecure") if self.outline.settings.allow_insecure => Ok(true),
            Some("insecure") => Err(self.error(
                span,
                "security.insecure is not allowed: build with --allow security.insecure",
            )),
            Some(other) => Err(self.error(
                span,
                format!("security {other:?} is not valid: it must be sandbox or insecure"),
            )),
        }
    }

    /// COPY and ADD.
    pub(super) fn copy(
        &self,
        copy: &CopyInstruction,
        add: bool,
        span: Span,
    ) -> Result<CopyOp, BuildError> {
        let mut sources = Vec::new();
        let mut remotes = Vec::new();
        for word in &copy.sources {
            let word = self.word(word, span)?;
            match Remote::parse(&word) {
                None => sources.push(word),
                Some(remote) => {
                    let remote = remote.map_err(|message| self.error(span, message))?;
                    remotes.push(self.remote(copy, add, remote, span)?);
                }
            }
        }
        if copy.checksum.is_some() {
            if sources.len() + remotes.len() + copy.heredocs.len() != 1 {
                let message = "checksum can't be specified for multiple sources";
                return Err(self.error(span, message));
            }
            if remotes.is_empty() {
                return Err(self.error(span, "checksum requires HTTP(S) or Git sources"));
            }
        }
        let inline = copy
            .heredocs
            .iter()
            .map(|heredoc| {
                let content = if heredoc.expand {
                    self.heredoc(&heredoc.content, span)?
                } else {
                    heredoc.content.clone()
                };
                Ok((heredoc.name.clone(), content))
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let written = self.word(&copy.destination, span)?;
        if written.is_empty() {
            return Err(self.error(span, "the destination of COPY and ADD must not be empty"));
        }
        let chmod = match &copy.chmod {
            None => None,
            Some(word) => {
                let mode = ModeChange::parse(&self.word(word, span)?);
                Some(mode.map_err(|e| self.error(span, e))?)
            }
        };
        let chown = match &copy.chown {
            None => None,
            Some(word) => Some(self.word(word, span)?).filter(|c| !c.is_empty()),
        };
        let exclude = copy
            .exclude
            .iter()
            .map(|word| self.word(word, span))
            .collect::<Result<Vec<_>, _>>()?;
        let destination = destination(&self.workdir(), &written);
        if sources.len() + remotes.len() + inline.len() > 1 && !destination.ends_with('/') {
            let keyword = if add { "ADD" } else { "COPY" };
            let message = format!(
                "When using {keyword} with more than one source file, the destination must be a \
                 directory and end with a /"
            );
            return Err(self.error(span, message));
        }
        let from = copy.from.as_deref();
        let source = self.outline.copy_from(self.index, from, span)?;
        if self.outline.is_too_late(&source, self.index) {
            let message = format!(
                "cannot copy from stage {:?}, it needs to be defined before current stage {:?}",
                from.unwrap_or_default(),
                self.outline.shown_name(self.index)
            );
            return Err(self.error(span, message));
        }
        Ok(CopyOp {
            from: source,
            sources,
            remotes,
            inline,
            destination,
            chown,
            chmod,
            unpack: copy.unpack.unwrap_or(add),
            link: copy.link,
            parents: copy.parents,
            exclude,
        })
    }

    /// COPY and ADD as BuildKit writes them into the history.
    pub(super) fn copied(
        &self,
        copy: &CopyInstruction,
        add: bool,
        span: Span,
    ) -> Result<String, BuildError> {
        let mut text = if add { "ADD" } else { "COPY" }.to_owned();
        let mut push = |prefix: &str, word: &str| {
            text.push(' ');
            text.push_str(prefix);
            text.push_str(word);
        };
        if copy.parents {
            push("--parents", "");
        }
        for (flag, word) in [("--chown=", &copy.chown), ("--chmod=", &copy.chmod)] {
            let word = word.as_deref().map(|word| self.word(word, span));
            if let Some(word) = word.transpose()?.filter(|word| !word.is_empty()) {
                push(flag, &word);
            }
        }
        for word in &copy.sources {
            let word = self.word(word, span)?;
            push("", &if add { masked(&word) } else { word });
        }
        for heredoc in &copy.heredocs {
            push("<<", &heredoc.name);
        }
        push("", &self.word(&copy.destination, span)?);
        text.push_str(" # buildkit");
        Ok(text)
    }

    /// A source that is elsewhere.
    fn remote(
        &self,
        copy: &CopyInstruction,
        add: bool,
        remote: Remote,
        span: Span,
    ) -> Result<RemoteOp, BuildError> {
        let checksum = match &copy.checksum {
            None => None,
            Some(word) => Some(self.word(word, span)?),
        };
        let mut keep_git_dir = copy.keep_git_dir;
        let mut remote = remote;
        let mut of_file = None;
        match &mut remote {
            Remote::Http(_) if !add => {
                return Err(self.error(span, "source can't be a URL for COPY"));
            }
            Remote::Git(_) if !add => {
                return Err(self.error(span, "source can't be a git ref for COPY"));
            }
            Remote::Http(_) => {
                if let Some(checksum) = checksum {
                    let digest: corten_oci::Digest = checksum.parse().map_err(|e| {
                        self.error(span, format!("invalid checksum {checksum:?}: {e}"))
                    })?;
                    if !digest.as_str().starts_with("sha256:") {
                        let message = format!("invalid checksum {checksum:?}: it must be sha256");
                        return Err(self.error(span, message));
                    }
                    of_file = Some(digest.to_string());
                }
            }
            Remote::Git(git) => {
                if let (Some(ours), Some(theirs)) = (copy.keep_git_dir, git.keep_git_dir)
                    && ours != theirs
                {
                    return Err(self.error(span, "inconsistent keep-git-dir configuration"));
                }
                keep_git_dir = keep_git_dir.or(git.keep_git_dir);
                match (&checksum, &git.checksum) {
                    (Some(ours), Some(theirs)) if ours != theirs => {
                        let message = format!("checksum mismatch {ours:?} != {theirs:?}");
                        return Err(self.error(span, message));
                    }
                    (Some(_), _) => git.checksum = checksum,
                    (None, _) => {}
                }
            }
        }
        Ok(RemoteOp {
            remote,
            checksum: of_file,
            unpack: copy.unpack == Some(true),
            keep_git_dir: keep_git_dir.unwrap_or(false),
        })
    }
}

/// An absolute destination; a directory that is meant as one keeps a slash at its end.
pub(super) fn destination(workdir: &str, written: &str) -> String {
    let is_dir = written.ends_with('/')
        || written == "."
        || written == ".."
        || written.ends_with("/.")
        || written.ends_with("/..");
    let mut path = super::values::join(workdir, written);
    if is_dir && !path.ends_with('/') {
        path.push('/');
    }
    path
}
