//! RUN and COPY: from the syntax tree to complete operations.

use corten_dockerfile::{CommandLine, CopyInstruction, RunInstruction, Span, scope};

use super::evaluate::Stage;
use super::{CopyOp, RunOp, SCRIPTS};
use crate::error::BuildError;
use crate::request::StepNetworkMode;

impl Stage<'_> {
    /// RUN.
    pub(super) fn run(&self, run: &RunInstruction, span: Span) -> Result<RunOp, BuildError> {
        if !run.devices.is_empty() {
            return Err(self.error(span, "RUN --device is not supported"));
        }
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
            CommandLine::Shell(text) => match run.heredocs.as_slice() {
                [] => self.in_shell(text),
                [only] if is_heredoc(text) => {
                    if only.content.starts_with("#!") {
                        script = Some((only.name.clone(), only.content.clone()));
                        self.in_shell(&format!("{SCRIPTS}/{}", only.name))
                    } else {
                        self.in_shell(&only.content)
                    }
                }
                several => {
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
        let args_in_scope = self
            .scope
            .args()
            .map(|(key, value)| format!("{key}={value}"));
        let env = self.scope.env().into_iter().chain(args_in_scope).collect();
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
            env,
            proxies,
            user: self.config.user.clone(),
            cwd: self.workdir(),
            network,
            script,
            mounts: self.mounts(&run.mounts, span)?,
            insecure,
        })
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
        for (flag, given) in [
            ("keep-git-dir", copy.keep_git_dir.is_some()),
            ("checksum", copy.checksum.is_some()),
        ] {
            if given {
                return Err(self.error(span, format!("ADD --{flag} is not supported")));
            }
        }
        let sources = copy
            .sources
            .iter()
            .map(|word| self.word(word, span))
            .collect::<Result<Vec<_>, _>>()?;
        if add && let Some(remote) = sources.iter().find(|s| is_remote(s)) {
            let message = format!(
                "ADD {remote}: remote sources are not supported: download it in a RUN step"
            );
            return Err(self.error(span, message));
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
            Some(word) => Some(self.mode(&self.word(word, span)?, span)?),
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
        if sources.len() + inline.len() > 1 && !destination.ends_with('/') {
            let keyword = if add { "ADD" } else { "COPY" };
            let message = format!(
                "When using {keyword} with more than one source file, the destination must be a \
                 directory and end with a /"
            );
            return Err(self.error(span, message));
        }
        Ok(CopyOp {
            from: self
                .outline
                .copy_from(self.index, copy.from.as_deref(), span)?,
            sources,
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

    fn mode(&self, word: &str, span: Span) -> Result<u32, BuildError> {
        match u32::from_str_radix(word, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(mode),
            _ => Err(self.error(
                span,
                format!("invalid chmod parameter: '{word}'. it should be octal string and between 0 and 07777"),
            )),
        }
    }
}

/// The whole command is one here-document.
fn is_heredoc(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("<<") && !text.contains(char::is_whitespace)
}

/// A URL or a git repository, as BuildKit tells them from paths.
fn is_remote(source: &str) -> bool {
    let lower = source.to_lowercase();
    ["http://", "https://", "git://", "ssh://", "git@"]
        .iter()
        .any(|prefix| lower.starts_with(prefix))
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
