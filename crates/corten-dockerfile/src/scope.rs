//! Which variables an instruction sees.
//!
//! Before the first FROM there is the *global* scope: the platform's predefined names, then
//! each ARG. A stage begins with what its base stage had, or with nothing; `ARG name` in it
//! brings a value in: `--build-arg`, else the instruction's own default, else the global
//! ARG's value. Of an ENV and an ARG of the same name the later one wins, as in BuildKit
//! (Docker's documentation says ENV always does), but an ARG never changes what the image's
//! configuration keeps. A stage begins with the environment of its base, so that the base's
//! ENV hides the base's ARGs.

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
    /// ARGs that have been declared so far and have a value, unless a later ENV hides them.
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
        let env = || self.env.iter().find(|(key, _)| key == name);
        let arg = self.args.get(name).map(String::as_str);
        arg.or_else(|| env().map(|(_, value)| value.as_str()))
    }

    /// For [`crate::Lexer`].
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// What a stage begins with that begins with this one.
    #[must_use]
    pub fn inherited(&self) -> Self {
        let mut scope = self.clone();
        for (key, _) in &self.env {
            scope.args.remove(key);
        }
        scope
    }

    /// ENV.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.args.remove(key);
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

    /// What a RUN has for its environment: what the image keeps, and the ARGs.
    #[must_use]
    pub fn run_env(&self) -> Vec<String> {
        let entry = |key: &str, value: &str| format!("{key}={value}");
        let known = |name: &str| self.env.iter().any(|(key, _)| key == name);
        let env = self.env.iter().map(|(key, value)| {
            let value = self.args.get(key).unwrap_or(value);
            entry(key, value)
        });
        let args = self.args.iter().filter(|(name, _)| !known(name));
        env.chain(args.map(|(name, value)| entry(name, value)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_env_and_arg_wins() {
        let mut scope = Scope::with_env(&["PATH=/bin", "V=base"]);
        scope.set_arg("V", "arg");
        scope.set_arg("ONLY", "x");
        assert_eq!(scope.get("V"), Some("arg"));
        assert_eq!(scope.env(), ["PATH=/bin", "V=base"]);
        assert_eq!(scope.run_env(), ["PATH=/bin", "V=arg", "ONLY=x"]);
        assert_eq!(scope.inherited().get("V"), Some("base"));
        assert_eq!(scope.inherited().get("ONLY"), Some("x"));
        scope.set_env("V", "env");
        assert_eq!(scope.get("V"), Some("env"));
        assert_eq!(scope.run_env(), ["PATH=/bin", "V=env", "ONLY=x"]);
    }
}
