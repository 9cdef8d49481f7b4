//! `# check=skip=A,B;error=true;experimental=C`: which rules are checked, for the whole file
//! or, in a comment above an instruction, for that alone.

use std::collections::BTreeSet;

use super::rules::Rule;
use crate::truth;

/// Which rules are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    skip: Names,
    experimental: Names,
    /// A warning fails the build.
    pub(super) error: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    named: BTreeSet<String>,
}

impl Names {
    fn parse(list: &str) -> Self {
        match list.trim() {
            "all" => Self {
                all: true,
                named: BTreeSet::new(),
            },
            list => Self {
                all: false,
                named: list.split(',').map(|name| name.trim().to_owned()).collect(),
            },
        }
    }

    fn has(&self, name: &str) -> bool {
        self.all || self.named.contains(name)
    }

    fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.named.extend(other.named);
    }
}

impl Options {
    /// Parses the value of the directive, or of `BUILDKIT_DOCKERFILE_CHECK`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        if text.trim().is_empty() {
            return Ok(options);
        }
        for part in text.trim().splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {part:?}"));
            };
            match key.trim() {
                "skip" => options.skip = Names::parse(value),
                "experimental" => options.experimental = Names::parse(value),
                "error" => {
                    let value = value.trim();
                    options.error = truth(value).ok_or_else(|| {
                        format!(
                            "failed to parse check option {part:?}: {value:?} is neither true nor \
                             false"
                        )
                    })?;
                }
                key => return Err(format!("invalid check option {key:?}")),
            }
        }
        Ok(options)
    }

    /// With what the comments above an instruction say. Only the first that says anything
    /// counts; one that cannot be understood says nothing.
    pub(super) fn with_comments(&self, comments: &[String]) -> Self {
        let mut options = self.clone();
        let local = comments.iter().find_map(|comment| {
            let (key, value) = comment.split_once('=')?;
            let value = value.trim();
            let first = value.split(' ').next().unwrap_or_default();
            (key.trim().eq_ignore_ascii_case("check") && !value.is_empty()).then_some(first)
        });
        if let Some(Ok(local)) = local.map(Self::parse) {
            options.skip.merge(local.skip);
            options.experimental.merge(local.experimental);
        }
        options
    }

    /// Whether a rule is checked.
    pub(super) fn checks(&self, rule: Rule) -> bool {
        if rule.is_experimental() {
            self.experimental.has(rule.name())
        } else {
            !self.skip.has(rule.name())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_and_merged() {
        let options = Options::parse("skip=StageNameCasing, FromAsCasing;error=true").unwrap();
        assert!(options.error);
        assert!(!options.checks(Rule::FromAsCasing) && options.checks(Rule::UndefinedVar));
        assert!(!options.checks(Rule::InvalidDefinitionDescription));
        let all = Options::parse("skip=all;experimental=all").unwrap();
        assert!(!all.checks(Rule::UndefinedVar));
        assert!(all.checks(Rule::InvalidDefinitionDescription));
        let comments = |text: &str| options.with_comments(&[text.to_owned()]);
        assert!(!comments("check=skip=UndefinedVar // because").checks(Rule::UndefinedVar));
        assert!(comments("check=nonsense").checks(Rule::UndefinedVar));
        assert!(comments("skip=UndefinedVar").checks(Rule::UndefinedVar));
    }

    #[test]
    fn errors() {
        for (text, message) in [
            ("skip", "invalid check option \"skip\""),
            ("skop=all", "invalid check option \"skop\""),
            (
                "error=perhaps",
                "failed to parse check option \"error=perhaps\": \"perhaps\" is neither true nor \
                 false",
            ),
        ] {
            assert_eq!(Options::parse(text).unwrap_err(), message);
        }
    }
}
