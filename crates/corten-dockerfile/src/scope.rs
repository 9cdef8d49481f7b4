//! Which variables an instruction sees.
//!
//! Before the first FROM there is the *global* scope: the platform's predefined names, then
//! each ARG. A stage begins with what its base stage had, or with nothing; `ARG name` in it
//! brings a value in: `--build-arg`, else the instruction's own default, else the global
//! ARG's value. ENV always wins over an ARG of the same name.

use std::collections::BTreeMap;

/// Proxy settings that may be given by `--build-arg` without an ARG. They reach RUN, but not
/// the cache key and not the history, unless declared.
pub const PREDEFINED_PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The variables at one point of a stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// ARGs that have been declared so far and have a value.
    args: BTreeMap<String, String>,
    /// The environment, in the order it was set.
    env: Vec<(String, String)>,
}

impl Scope {
    /// A scope that begins with an image's environment (`KEY=value` entries).
    #[must_use]
    pub fn with_env<S: AsRef<str>>(env: &[S]) -> Self {
        let mut scope = Self::default();
        for entry in env {
            let (key, value) = entry
                .as_ref()
                .split_once('=')
                .unwrap_or((entry.as_ref(), ""));
            scope.set_env(key, value);
        }
        scope
    }

    /// The value an instruction sees.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .or_else(|| self.args.get(name).map(String::as_str))
    }

    /// For [`crate::Lexer`].
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// ENV.
    pub fn set_env(&mut self, key: &str, value: &str) {
        match self.env.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => self.env.push((key.to_owned(), value.to_owned())),
        }
    }

    /// ARG.
    pub fn set_arg(&mut self, name: &str, value: &str) {
        self.args.insert(name.to_owned(), value.to_owned());
    }

    /// The environment, as an image's configuration has it.
    #[must_use]
    pub fn env(&self) -> Vec<String> {
        self.env
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    }

    /// The ARGs a RUN sees as environment: those ENV does not hide.
    pub fn args(&self) -> impl Iterator<Item = (&str, &str)> {
        self.args
            .iter()
            .filter(|(name, _)| !self.env.iter().any(|(key, _)| key == *name))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_wins_over_arg() {
        let mut scope = Scope::with_env(&["PATH=/bin"]);
        scope.set_arg("V", "arg");
        scope.set_arg("ONLY", "x");
        assert_eq!(scope.get("V"), Some("arg"));
        scope.set_env("V", "env");
        assert_eq!(scope.get("V"), Some("env"));
        assert_eq!(scope.env(), ["PATH=/bin", "V=env"]);
        assert_eq!(scope.args().collect::<Vec<_>>(), [("ONLY", "x")]);
    }
}
