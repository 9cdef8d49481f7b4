//! `RUN --mount`: one mount as its flag says it (Dockerfile reference, "RUN --mount").

use crate::expand::ExpandError;
use crate::parse::suggest;
use crate::truth;

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountKind {
    /// A directory or file of a stage, an image or the context.
    #[default]
    Bind,
    /// A directory kept from build to build.
    Cache,
    /// An empty file system in memory.
    Tmpfs,
    /// A file (or variable) given by `--secret`.
    Secret,
    /// The socket of an SSH agent given by `--ssh`.
    Ssh,
}

impl MountKind {
    const NAMES: [(&'static str, Self); 5] = [
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    /// The word of `type=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

/// Who may use a cache at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// Each concurrent user gets one of its own.
    Private,
    /// One after the other.
    Locked,
}

impl Sharing {
    const NAMES: [(&'static str, Self); 3] = [
        ("shared", Self::Shared),
        ("private", Self::Private),
        ("locked", Self::Locked),
    ];

    /// The word of `sharing=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
            Self::Locked => "locked",
        }
    }
}

/// One `--mount`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `type`.
    pub kind: MountKind,
    /// `from`: a stage, image or named context; the build context when absent.
    pub from: Option<String>,
    /// `source`, `src`.
    pub source: Option<String>,
    /// `target`, `dst`, `destination`, as written.
    pub target: Option<String>,
    /// Nothing can be written. By default so for all but `cache` and `tmpfs`.
    pub read_only: bool,
    /// `id`.
    pub id: Option<String>,
    /// `sharing`.
    pub sharing: Sharing,
    /// `required`: a missing secret or agent is an error.
    pub required: bool,
    /// `size` in bytes (tmpfs).
    pub size: Option<u64>,
    /// `mode`, octal.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `env`: the variable a secret is given in.
    pub env: Option<String>,
}

/// Every key, for suggestions.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

impl Mount {
    /// Parses the value of a flag; every value in it is given to `expand` first.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn parse(
        flag: &str,
        expand: &mut dyn FnMut(&str) -> Result<String, ExpandError>,
    ) -> Result<Self, String> {
        let mut mount = Self::default();
        let mut read_only = None;
        let mut sharing = None;
        for field in fields(flag)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(expand(value).map_err(|e| e.to_string())?)),
                None => (field.as_str(), None),
            };
            let key = key.to_lowercase();
            match (key.as_str(), value) {
                ("readonly" | "ro", value) => read_only = Some(boolean(&key, value.as_deref())?),
                ("readwrite" | "rw", value) => {
                    read_only = Some(!boolean(&key, value.as_deref())?);
                }
                ("required", value) => {
                    if !matches!(mount.kind, MountKind::Secret | MountKind::Ssh) {
                        return Err(mount.unexpected(&key));
                    }
                    mount.required = boolean(&key, value.as_deref())?;
                }
                (_, None) => {
                    return Err(format!("invalid field '{field}' must be a key=value pair"));
                }
                ("type", Some(value)) => {
                    mount.kind = named(&MountKind::NAMES, "mount type", &value)?;
                }
                ("from", Some(value)) => mount.from = Some(value).filter(|v| !v.is_empty()),
                ("source" | "src", Some(value)) => {
                    mount.source = Some(value).filter(|v| !v.is_empty());
                }
                ("target" | "dst" | "destination", Some(value)) => {
                    mount.target = Some(value).filter(|v| !v.is_empty());
                }
                ("size", Some(value)) => {
                    if mount.kind != MountKind::Tmpfs {
                        return Err(mount.unexpected(&key));
                    }
                    let size =
                        bytes(&value).ok_or_else(|| format!("invalid value for {key}: {value}"))?;
                    mount.size = Some(size);
                }
                ("id", Some(value)) => mount.id = Some(value).filter(|v| !v.is_empty()),
                ("sharing", Some(value)) => {
                    sharing = Some(named(&Sharing::NAMES, "sharing value", &value)?);
                }
                ("mode", Some(value)) => mount.mode = Some(number(&key, &value, 8)?),
                ("uid", Some(value)) => mount.uid = Some(number(&key, &value, 10)?),
                ("gid", Some(value)) => mount.gid = Some(number(&key, &value, 10)?),
                ("env", Some(value)) => mount.env = Some(value),
                _ => {
                    let hint = suggest(&key, &KEYS)
                        .map_or_else(String::new, |known| format!(" (did you mean {known}?)"));
                    return Err(format!("unexpected key '{key}' in '{field}'{hint}"));
                }
            }
        }
        mount.sharing = sharing.unwrap_or_default();
        mount.read_only =
            read_only.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
        mount.check(sharing.is_some())?;
        Ok(mount)
    }

    /// What `from=` says in a flag that is not expanded yet.
    ///
    /// # Errors
    /// It has a variable in it: which stages a build needs is decided before there are any.
    pub fn from_of(flag: &str) -> Result<Option<String>, String> {
        let mut from = None;
        for field in fields(flag)? {
            if let Some((key, value)) = field.split_once('=')
                && key.eq_ignore_ascii_case("from")
            {
                if value.find('$').is_some_and(|at| at + 1 < value.len()) {
                    return Err(
                        "'from' doesn't support variable expansion, define alias stage instead"
                            .to_owned(),
                    );
                }
                from = Some(value.to_owned()).filter(|v| !v.is_empty());
            }
        }
        Ok(from)
    }

    /// The id of the secret it asks for.
    #[must_use]
    pub fn secret_id(&self) -> String {
        let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        match (&self.source, &self.id, &self.target) {
            (Some(source), _, _) => source.clone(),
            (None, Some(id), _) => id.clone(),
            (None, None, target) => last(target.as_deref().unwrap_or_default()),
        }
    }

    /// The id of the SSH agent it asks for.
    #[must_use]
    pub fn ssh_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| "default".to_owned())
    }

    fn unexpected(&self, key: &str) -> String {
        format!(
            "unexpected key '{key}' for mount type '{}'",
            self.kind.as_str()
        )
    }

    fn check(&self, sharing: bool) -> Result<(), String> {
        let kind = self.kind;
        let owned = matches!(kind, MountKind::Secret | MountKind::Ssh | MountKind::Cache);
        for (key, given) in [
            ("mode", self.mode.is_some()),
            ("uid", self.uid.is_some()),
            ("gid", self.gid.is_some()),
        ] {
            if given && !owned {
                return Err(format!(
                    "{key} not allowed for {:?} type mounts",
                    kind.as_str()
                ));
            }
        }
        if kind == MountKind::Secret {
            if self.from.is_some() {
                return Err("secret mount should not have a from".to_owned());
            }
            if sharing {
                return Err("secret mount should not define sharing".to_owned());
            }
            if self.source.is_none() && self.target.is_none() && self.id.is_none() {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            if self.source.is_some() && self.id.is_some() {
                return Err("both source and id can't be set".to_owned());
            }
        }
        if kind == MountKind::Ssh && self.source.is_some() {
            return Err("ssh does not support source".to_owned());
        }
        if sharing && kind != MountKind::Cache {
            return Err(format!(
                "invalid cache sharing set for {} mount",
                kind.as_str()
            ));
        }
        Ok(())
    }
}

fn named<T: Copy>(names: &[(&'static str, T)], what: &str, word: &str) -> Result<T, String> {
    let lower = word.to_lowercase();
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == lower) {
        return Ok(*value);
    }
    let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let hint =
        suggest(word, &known).map_or_else(String::new, |known| format!(" (did you mean {known}?)"));
    Err(format!("unsupported {what} {word:?}{hint}"))
}

/// Go's `strconv.ParseBool`; a key without a value is true.
pub(crate) fn boolean(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None => Ok(true),
        Some(text) => truth(text).ok_or_else(|| format!("invalid value for {key}: {text}")),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, String> {
    if value.starts_with(['+', '-']) {
        return Err(format!("invalid value {value} for {key}"));
    }
    u32::from_str_radix(value, radix).map_err(|_| format!("invalid value {value} for {key}"))
}

/// A size as Docker writes it: `64m`, `1.5GiB`, bytes without a unit.
fn bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().to_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    #[allow(clippy::cast_precision_loss)] // a power of two is exact
    let bytes = number * (1_u64 << power) as f64;
    // Beyond 2^63 nothing can be mounted; a NaN is excluded by the syntax.
    (bytes < 9.2e18).then(|| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
        let whole = bytes as u64;
        whole
    })
}

/// Comma-separated fields; a field in double quotes may contain commas, `""` is a quote.
pub(crate) fn fields(flag: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut chars = flag.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    None => {
                        return Err(format!(
                            "failed to parse csv mounts: {flag:?}: a quote is not closed"
                        ));
                    }
                    Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(c) => field.push(c),
                }
            }
        }
        while let Some(c) = chars.next_if(|&c| c != ',') {
            if c == '"' {
                return Err(format!(
                    "failed to parse csv mounts: {flag:?}: a quote inside a field"
                ));
            }
            field.push(c);
        }
        fields.push(field);
        if chars.next().is_none() {
            return Ok(fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flag: &str) -> Result<Mount, String> {
        Mount::parse(flag, &mut |word| Ok(word.replace("$V", "value")))
    }

    #[test]
    fn kinds_and_defaults() {
        let bind = parse("target=/x").unwrap();
        assert_eq!((bind.kind, bind.read_only), (MountKind::Bind, true));
        assert!(!parse("target=/x,rw").unwrap().read_only);
        assert!(!parse("readonly=false,target=/x").unwrap().read_only);
        let cache = parse("type=cache,id=$V,dst=/c,sharing=Locked,mode=0700,uid=1,gid=2").unwrap();
        assert_eq!(cache.id.as_deref(), Some("value"));
        assert_eq!(
            (cache.sharing, cache.mode, cache.uid, cache.gid),
            (Sharing::Locked, Some(0o700), Some(1), Some(2))
        );
        assert!(!cache.read_only);
        let tmpfs = parse("type=tmpfs,size=64m,destination=/t").unwrap();
        assert_eq!(tmpfs.size, Some(64 << 20));
        let secret = parse("type=secret,id=a,env=TOKEN,required").unwrap();
        assert!(secret.required && secret.read_only);
        assert_eq!(secret.env.as_deref(), Some("TOKEN"));
        assert_eq!(
            parse("\"target=/a,b\",type=bind")
                .unwrap()
                .target
                .as_deref(),
            Some("/a,b")
        );
    }

    #[test]
    fn errors() {
        for (flag, message) in [
            (
                "type=cach,target=/x",
                "unsupported mount type \"cach\" (did you mean cache?)",
            ),
            (
                "tarjet=/x",
                "unexpected key 'tarjet' in 'tarjet=/x' (did you mean target?)",
            ),
            ("target", "invalid field 'target' must be a key=value pair"),
            (
                "type=bind,size=1",
                "unexpected key 'size' for mount type 'bind'",
            ),
            ("type=tmpfs,size=big", "invalid value for size: big"),
            (
                "type=bind,mode=1",
                "mode not allowed for \"bind\" type mounts",
            ),
            ("type=cache,target=/x,mode=9", "invalid value 9 for mode"),
            ("type=cache,target=/x,uid=-1", "invalid value -1 for uid"),
            (
                "type=cache,target=/x,required",
                "unexpected key 'required' for mount type 'cache'",
            ),
            (
                "type=cache,sharing=all",
                "unsupported sharing value \"all\"",
            ),
            (
                "type=bind,sharing=shared",
                "invalid cache sharing set for bind mount",
            ),
            (
                "type=secret",
                "invalid secret mount. one of source, target required",
            ),
            ("type=secret,id=a,src=b", "both source and id can't be set"),
            (
                "type=secret,id=a,from=b",
                "secret mount should not have a from",
            ),
            ("type=ssh,src=/x", "ssh does not support source"),
            ("ro=maybe,target=/x", "invalid value for ro: maybe"),
            (
                "\"a",
                "failed to parse csv mounts: \"\\\"a\": a quote is not closed",
            ),
        ] {
            assert_eq!(parse(flag).unwrap_err(), message, "{flag}");
        }
    }

    #[test]
    fn from_is_known_before_variables() {
        assert_eq!(
            Mount::from_of("from=a,target=/x").unwrap().as_deref(),
            Some("a")
        );
        assert_eq!(Mount::from_of("target=$x").unwrap(), None);
        assert!(
            Mount::from_of("from=$x")
                .unwrap_err()
                .contains("define alias stage")
        );
    }
}
