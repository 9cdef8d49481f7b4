//! The parser: arguments and a flag table in, values out.

use super::{Flag, Kind, values};

/// A flag that could not be understood, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No such long flag.
    #[error("unknown flag: --{0}")]
    Unknown(String),
    /// No such letter.
    #[error("unknown shorthand flag: {0:?} in -{1}")]
    UnknownShort(char, String),
    /// Nothing like `--name`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// The value is missing.
    #[error("flag needs an argument: {0}")]
    NeedsValue(String),
    /// The value does not fit.
    #[error("invalid argument {value:?} for {flag:?} flag: {reason}")]
    Value {
        /// The value given.
        value: String,
        /// The flag as the help shows it: `-m, --memory`.
        flag: String,
        /// Why not.
        reason: String,
    },
}

/// What parsing led to.
#[derive(Debug)]
pub enum Outcome {
    /// Flags and arguments.
    Parsed(Parsed),
    /// The user asked for help.
    Help,
}

/// Flags that were given, and arguments.
#[derive(Debug, Clone)]
pub struct Parsed {
    tables: Vec<&'static [Flag]>,
    given: Vec<(&'static str, String)>,
    /// What was not a flag, in order.
    pub args: Vec<String>,
}

impl Parsed {
    fn flag(&self, long: &str) -> Option<&'static Flag> {
        let found = self
            .tables
            .iter()
            .flat_map(|t| t.iter())
            .find(|f| f.long == long);
        debug_assert!(found.is_some(), "the command has no flag --{long}");
        found
    }

    /// Whether the flag was given at all.
    #[must_use]
    pub fn given(&self, long: &str) -> bool {
        debug_assert!(self.flag(long).is_some());
        self.given.iter().any(|(name, _)| *name == long)
    }

    /// The last value given, or else the default; `None` when there is neither.
    #[must_use]
    pub fn text(&self, long: &str) -> Option<&str> {
        let default = self.flag(long).map(|f| f.default).filter(|d| !d.is_empty());
        self.given
            .iter()
            .rfind(|(name, _)| *name == long)
            .map(|(_, v)| v.as_str())
            .or(default)
    }

    /// Like [`Self::text`], where an empty text counts as none.
    #[must_use]
    pub fn nonempty(&self, long: &str) -> Option<&str> {
        self.text(long).filter(|text| !text.is_empty())
    }

    /// Whether a switch is on.
    #[must_use]
    pub fn on(&self, long: &str) -> bool {
        self.text(long)
            .and_then(values::parse_bool)
            .unwrap_or(false)
    }

    /// All values given, in order.
    #[must_use]
    pub fn list(&self, long: &str) -> Vec<&str> {
        debug_assert!(self.flag(long).is_some());
        self.given
            .iter()
            .filter(|(name, _)| *name == long)
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// A whole number (checked while parsing); `None` when not given.
    #[must_use]
    pub fn int(&self, long: &str) -> Option<i64> {
        self.text(long)
            .and_then(|text| values::parse_int(text).ok())
    }

    /// A number of bytes; `None` when not given.
    #[must_use]
    pub fn bytes(&self, long: &str) -> Option<i64> {
        self.text(long)
            .and_then(|text| crate::opts::size::parse(text).ok())
    }

    /// A duration in nanoseconds; `None` when not given.
    #[must_use]
    pub fn duration(&self, long: &str) -> Option<i64> {
        self.text(long)
            .and_then(|text| corten_engine::when::duration(text).ok())
    }
}

/// Parses `args`. Where `interspersed` is false everything from the first argument that is
/// no flag on is left alone.
///
/// # Errors
/// The first flag that is unknown, lacks its value or has one that does not fit.
pub fn parse(
    tables: &[&'static [Flag]],
    interspersed: bool,
    args: impl IntoIterator<Item = String>,
) -> Result<Outcome, FlagError> {
    let mut parser = Parser {
        parsed: Parsed {
            tables: tables.to_vec(),
            given: Vec::new(),
            args: Vec::new(),
        },
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parser.parsed.args.extend(args);
            break;
        }
        let help = if let Some(long) = arg.strip_prefix("--") {
            parser.long(&arg, long, &mut args)?
        } else if arg.len() > 1 && arg.starts_with('-') {
            parser.shorts(&arg[1..], &mut args)?
        } else {
            parser.parsed.args.push(arg);
            if !interspersed {
                parser.parsed.args.extend(args);
                break;
            }
            false
        };
        if help {
            return Ok(Outcome::Help);
        }
    }
    Ok(Outcome::Parsed(parser.parsed))
}

struct Parser {
    parsed: Parsed,
}

impl Parser {
    fn find(&self, matches: impl Fn(&Flag) -> bool) -> Option<&'static Flag> {
        self.parsed
            .tables
            .iter()
            .flat_map(|table| table.iter())
            .find(|flag| matches(flag))
    }

    /// Returns whether help was asked for.
    fn long(
        &mut self,
        whole: &str,
        body: &str,
        rest: &mut impl Iterator<Item = String>,
    ) -> Result<bool, FlagError> {
        let (name, attached) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(FlagError::Syntax(whole.into()));
        }
        let Some(flag) = self.find(|f| f.long == name) else {
            if name == "help" {
                return Ok(true);
            }
            return Err(FlagError::Unknown(name.into()));
        };
        let value = match (attached, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Switch) => "true".into(),
            (None, _) => rest
                .next()
                .ok_or_else(|| FlagError::NeedsValue(format!("--{name}")))?,
        };
        self.set(flag, value)?;
        Ok(false)
    }

    fn shorts(
        &mut self,
        cluster: &str,
        rest: &mut impl Iterator<Item = String>,
    ) -> Result<bool, FlagError> {
        for (index, letter) in cluster.char_indices() {
            let Some(flag) = self.find(|f| f.short == Some(letter)) else {
                if letter == 'h' {
                    return Ok(true);
                }
                return Err(FlagError::UnknownShort(letter, cluster[index..].into()));
            };
            let after = &cluster[index + letter.len_utf8()..];
            if let Some(value) = after.strip_prefix('=') {
                self.set(flag, value.into())?;
                break;
            }
            if flag.kind == Kind::Switch {
                self.set(flag, "true".into())?;
                continue;
            }
            let value = if after.is_empty() {
                rest.next().ok_or_else(|| {
                    FlagError::NeedsValue(format!("'{letter}' in -{}", &cluster[index..]))
                })?
            } else {
                after.into()
            };
            self.set(flag, value)?;
            break;
        }
        Ok(false)
    }

    fn set(&mut self, flag: &'static Flag, value: String) -> Result<(), FlagError> {
        if let Err(reason) = (flag.check)(&value) {
            let name = match flag.short {
                Some(short) => format!("-{short}, --{}", flag.long),
                None => format!("--{}", flag.long),
            };
            return Err(FlagError::Value {
                value,
                flag: name,
                reason,
            });
        }
        self.parsed.given.push((flag.long, value));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::switch("detach", "").short('d'),
        Flag::switch("tty", "").short('t'),
        Flag::switch("sig-proxy", "").default("true"),
        Flag::list("publish", "").short('p'),
        Flag::text("name", ""),
        Flag::bytes("memory", "").short('m'),
        Flag::int("retries", ""),
    ];

    fn run(interspersed: bool, args: &str) -> Result<Parsed, String> {
        let args = args.split(' ').filter(|a| !a.is_empty()).map(String::from);
        match parse(&[FLAGS], interspersed, args) {
            Ok(Outcome::Parsed(parsed)) => Ok(parsed),
            Ok(Outcome::Help) => Err("help".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn understands_pflags_forms() {
        for args in [
            "-dt -p 80:80 --name x img",
            "-td -p80:80 --name=x img",
            "-d=true -tp=80:80 --name x img",
            "--detach --tty --publish=80:80 --name y --name x img",
        ] {
            let p = run(false, args).unwrap();
            assert!(p.on("detach") && p.on("tty") && p.on("sig-proxy"), "{args}");
            assert_eq!(p.list("publish"), ["80:80"], "{args}");
            assert_eq!(p.text("name"), Some("x"), "{args}");
            assert_eq!(p.args, ["img"], "{args}");
        }
        let p = run(false, "--sig-proxy=false -m 1k --retries 0x10").unwrap();
        assert!(!p.on("sig-proxy"));
        assert_eq!(
            (p.bytes("memory"), p.int("retries")),
            (Some(1024), Some(16))
        );
    }

    #[test]
    fn arguments_end_flags_or_mix_with_them() {
        assert_eq!(run(false, "img -d").unwrap().args, ["img", "-d"]);
        let mixed = run(true, "img -d").unwrap();
        assert_eq!(
            (mixed.args.as_slice(), mixed.on("detach")),
            (["img".to_owned()].as_slice(), true)
        );
        assert_eq!(run(true, "-- -d --x").unwrap().args, ["-d", "--x"]);
        assert_eq!(run(true, "-").unwrap().args, ["-"]);
    }

    #[test]
    fn errors_have_dockers_words() {
        for (args, expected) in [
            ("--nosuch", "unknown flag: --nosuch"),
            ("-Z", "unknown shorthand flag: 'Z' in -Z"),
            ("-dZx", "unknown shorthand flag: 'Z' in -Zx"),
            ("--name", "flag needs an argument: --name"),
            ("-m", "flag needs an argument: 'm' in -m"),
            ("--=x", "bad flag syntax: --=x"),
            (
                "-m lots",
                "invalid argument \"lots\" for \"-m, --memory\" flag: invalid size: 'lots'",
            ),
            (
                "--detach=maybe",
                "invalid argument \"maybe\" for \"-d, --detach\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "--retries x",
                "invalid argument \"x\" for \"--retries\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            ("--help", "help"),
            ("-h", "help"),
        ] {
            assert_eq!(run(true, args).unwrap_err(), expected, "{args}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(args in proptest::collection::vec("[-=a-z0-9€]{0,8}", 0..6)) {
            drop(parse(&[FLAGS], true, args));
        }
    }
}
