//! `--log`: lines in the two forms of logrus, which engines parse to show `msg` to their
//! users. The file is opened for each line: a descriptor of ours would be in the way of those
//! the caller passes on.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::error::CliError;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) file: Option<PathBuf>,
    pub(super) format: Format,
    /// `--debug`: say what is being done, too.
    pub(super) verbose: bool,
}

impl Log {
    /// Whether it can be written: whoever is to read it must hear of that before anything else.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        let opened = File::options().append(true).create(true).open(path);
        opened
            .map(drop)
            .map_err(|error| CliError::io(format_args!("open {}", path.display()), error))
    }

    /// The command's failure: in the log, and always on standard error.
    pub(super) fn error(&self, error: &dyn fmt::Display) {
        self.write("error", error);
        if self.file.is_some() || self.format == Format::Text {
            eprintln!("corten runtime: {}", OneLine(error));
        }
    }

    /// Something the caller should know, although the command goes on.
    pub(super) fn warn(&self, message: &dyn fmt::Display) {
        self.write("warning", message);
        if self.file.is_none() && self.format == Format::Text {
            eprintln!("corten runtime: warning: {}", OneLine(message));
        }
    }

    pub(super) fn debug(&self, message: &dyn fmt::Display) {
        if self.verbose {
            self.write("debug", message);
            if self.file.is_none() && self.format == Format::Text {
                eprintln!("corten runtime: {}", OneLine(message));
            }
        }
    }

    fn write(&self, level: &str, message: &dyn fmt::Display) {
        let Some(path) = &self.file else {
            if self.format == Format::Json {
                eprintln!("{}", self.line(level, message));
            }
            return;
        };
        let file = File::options().append(true).create(true).open(path);
        // One write, so that lines of several processes do not mix.
        let line = format!("{}\n", self.line(level, message));
        if let Err(failed) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("corten runtime: {}: {failed}", path.display());
        }
    }

    fn line(&self, level: &str, message: &dyn fmt::Display) -> String {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let message = OneLine(message).to_string();
        match self.format {
            Format::Json => serde_json::json!({
                "level": level, "msg": message, "time": time.to_string(),
            })
            .to_string(),
            Format::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        }
    }
}

/// Takes what this crate reports as events: warnings about parts of a configuration that are
/// not carried out are for whoever reads the log, like those of the command line itself.
pub(super) struct Events(pub(super) Log);

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN || self.0.verbose && *metadata.level() <= Level::DEBUG
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.0.verbose {
            LevelFilter::DEBUG
        } else {
            LevelFilter::WARN
        })
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let Text { message, fields } = text;
        let line = if fields.is_empty() {
            message
        } else {
            format!("{message} ({})", fields.join(", "))
        };
        if *event.metadata().level() <= Level::WARN {
            self.0.warn(&line);
        } else {
            self.0.debug(&line);
        }
    }

    // There are no spans in this crate.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message, and its fields as `name: value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<String>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push(format!("{name}: {value:?}")),
        }
    }
}

/// What others wrote (a hook's output) may have several.
struct OneLine<'a>(&'a dyn fmt::Display);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or_default())?;
        lines.try_for_each(|line| write!(f, "; {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_engines_parse() {
        let line = |format| {
            let log = Log {
                format,
                ..Log::default()
            };
            log.line("error", &"open \"/x\":\n no such file")
        };
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json)).unwrap();
        assert_eq!(json["level"], "error");
        assert_eq!(json["msg"], "open \"/x\":; no such file");
        assert!(json["time"].as_str().unwrap().ends_with('Z'));
        let text = line(Format::Text);
        assert!(text.starts_with("time=\""), "{text}");
        assert!(
            text.ends_with(r#"level=error msg="open \"/x\":; no such file""#),
            "{text}"
        );
    }
}
