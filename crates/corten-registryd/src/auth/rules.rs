//! Who may do what with which repositories.

use serde::Deserialize;

/// What can be done with a repository (the actions of Docker's token scopes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Reading it.
    Pull,
    /// Adding to it.
    Push,
    /// Removing manifests, tags and blobs.
    Delete,
}

impl Action {
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// As scopes and rules write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// Allows some users some actions on some repositories. What no rule allows is refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names of repositories; `*` stands for anything within one part of a name, `**` for
    /// anything.
    pub repositories: Vec<String>,
    /// Names of users; `*` stands for every user, `anonymous` for everybody, with or without a
    /// password.
    pub users: Vec<String>,
    /// What they may do.
    pub actions: Vec<Action>,
}

/// Whether the rules let a user (`None`: somebody without a password) do this.
pub(crate) fn allow(rules: &[Rule], user: Option<&str>, repository: &str, action: Action) -> bool {
    let meant = |name: &String| match (name.as_str(), user) {
        ("anonymous", _) | ("*", Some(_)) => true,
        (name, Some(user)) => name == user,
        (_, None) => false,
    };
    rules.iter().any(|rule| {
        rule.actions.contains(&action)
            && rule.users.iter().any(meant)
            && rule
                .repositories
                .iter()
                .any(|pattern| matches(pattern.as_bytes(), repository.as_bytes()))
    })
}

/// Matches a name with a pattern, in time proportional to both: the possible places in the
/// pattern are followed together.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let tokens = tokens(pattern);
    let mut places = vec![false; tokens.len() + 1];
    places[0] = true;
    skip(&tokens, &mut places);
    for byte in name {
        let mut next = vec![false; tokens.len() + 1];
        for (at, token) in tokens.iter().enumerate().filter(|(at, _)| places[*at]) {
            match token {
                Token::Byte(wanted) if wanted == byte => next[at + 1] = true,
                Token::Part if *byte != b'/' => next[at] = true,
                Token::All => next[at] = true,
                Token::Byte(_) | Token::Part => {}
            }
        }
        skip(&tokens, &mut next);
        places = next;
    }
    places[tokens.len()]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Part,
    All,
}

fn tokens(pattern: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    for byte in pattern {
        match (byte, tokens.last()) {
            (b'*', Some(Token::All)) => {}
            (b'*', Some(Token::Part)) => {
                tokens.pop();
                tokens.push(Token::All);
            }
            (b'*', _) => tokens.push(Token::Part),
            (byte, _) => tokens.push(Token::Byte(*byte)),
        }
    }
    tokens
}

/// A star may stand for nothing.
fn skip(tokens: &[Token], places: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        if places[at] && matches!(token, Token::Part | Token::All) {
            places[at + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("app", "app", true),
            ("app", "apps", false),
            ("*", "app", true),
            ("*", "team/app", false),
            ("**", "team/app", true),
            ("team/*", "team/app", true),
            ("team/*", "team/a/b", false),
            ("team/**", "team/a/b", true),
            ("team/**", "team", false),
            ("team/**", "teamster/a", false),
            ("*/app", "team/app", true),
            ("a*c", "abbc", true),
            ("a*c", "ab/c", false),
            ("a**c", "ab/c", true),
            ("", "app", false),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        // Exponential in a naive matcher.
        let pattern = "*a".repeat(60);
        assert!(!matches(pattern.as_bytes(), "a".repeat(59).as_bytes()));
    }

    #[test]
    fn only_what_a_rule_allows() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let rule = |repositories: &[&str], users: &[&str], actions: &[Action]| Rule {
            repositories: words(repositories),
            users: words(users),
            actions: actions.to_vec(),
        };
        use Action::{Delete, Pull, Push};
        let rules = [
            rule(&["public/**"], &["anonymous"], &[Pull]),
            rule(&["**"], &["*"], &[Pull]),
            rule(&["team/**", "public/**"], &["ann"], &[Push, Delete]),
        ];
        let table = [
            (None, "public/x", Pull, true),
            (None, "public/x", Push, false),
            (None, "team/x", Pull, false),
            (Some("bob"), "public/x", Pull, true),
            (Some("bob"), "team/x", Pull, true),
            (Some("bob"), "team/x", Push, false),
            (Some("ann"), "team/x", Push, true),
            (Some("ann"), "team/x", Delete, true),
            (Some("ann"), "other", Push, false),
        ];
        for (user, repository, action, expected) in table {
            assert_eq!(
                allow(&rules, user, repository, action),
                expected,
                "{user:?} {repository} {action:?}"
            );
        }
    }
}
