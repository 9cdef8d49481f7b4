//! `WWW-Authenticate` challenges (RFC 9110, 11.6.1), and the scopes that tokens are asked for.

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge to answer of all that came: for a token if there is one, which anybody may
    /// ask for and every kind of credential is good for.
    pub(crate) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut all: Vec<Self> = values.flat_map(split).filter_map(Self::parse).collect();
        let bearer = all
            .iter()
            .position(|one| matches!(one, Self::Bearer { .. }));
        let first = bearer.or(if all.is_empty() { None } else { Some(0) });
        first.map(|at| all.swap_remove(at))
    }

    /// Parses a `WWW-Authenticate` value with one challenge.
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim_start();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = if let Some(quoted) = after.strip_prefix('"') {
                let mut text = String::new();
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = characters.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => text.extend(characters.next().map(|(_, c)| c)),
                        c => text.push(c),
                    }
                }
                (text, &quoted[end.min(quoted.len())..])
            } else {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// The challenges of one value: a comma ends one if a word without a value follows.
fn split(value: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut begin, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted && begins_challenge(&value[at + 1..]) => {
                found.push(&value[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(&value[begin..]);
    found
}

fn begins_challenge(text: &str) -> bool {
    let text = text.trim_start();
    let word = text.split([' ', ',']).next().unwrap_or_default();
    // "key = value" is allowed, too.
    let after = text[word.len()..].trim_start();
    !word.is_empty() && !word.contains('=') && !after.starts_with('=')
}

/// What a token is, or should be, good for: actions by resource (`repository:a/b`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scopes(Vec<(String, Vec<String>)>);

impl Scopes {
    /// Reads `type:name:action,action`, several separated by blanks. What has another form is
    /// asked for as it is.
    pub(crate) fn parse(text: &str) -> Self {
        let mut scopes = Self::default();
        for scope in text.split_whitespace() {
            let (resource, actions) = match scope.rsplit_once(':') {
                Some((resource, actions)) if resource.contains(':') => (resource, actions),
                _ => (scope, ""),
            };
            scopes.add(resource, actions.split(',').filter(|word| !word.is_empty()));
        }
        scopes
    }

    fn add<'a>(&mut self, resource: &str, actions: impl Iterator<Item = &'a str>) {
        let at = match self.0.iter().position(|(known, _)| known == resource) {
            Some(at) => at,
            None => {
                self.0.push((resource.to_owned(), Vec::new()));
                self.0.len() - 1
            }
        };
        for action in actions {
            if !self.0[at].1.iter().any(|known| known == action) {
                self.0[at].1.push(action.to_owned());
            }
        }
    }

    /// What either of the two is good for.
    #[must_use]
    pub(crate) fn merged(mut self, other: &Self) -> Self {
        for (resource, actions) in &other.0 {
            self.add(resource, actions.iter().map(String::as_str));
        }
        self
    }

    /// Whether these do where `wanted` is needed.
    pub(crate) fn cover(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(resource, actions)| {
            self.0.iter().any(|(known, have)| {
                known == resource && actions.iter().all(|action| have.contains(action))
            })
        })
    }

    /// Each as text.
    pub(crate) fn texts(&self) -> Vec<String> {
        let text = |(resource, actions): &(String, Vec<String>)| match actions.as_slice() {
            [] => resource.clone(),
            actions => format!("{resource}:{}", actions.join(",")),
        };
        self.0.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(
            Challenge::parse(
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#
            ),
            Some(Challenge::Bearer {
                realm: "https://a/t".into(),
                service: Some("s".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Digest realm=x"), None);
    }

    #[test]
    fn a_token_is_asked_for_if_there_is_a_choice() {
        let bearer = |realm: &str| Challenge::Bearer {
            realm: realm.to_owned(),
            service: Some("s".to_owned()),
            scope: None,
        };
        for values in [
            &[
                "Basic realm=\"x\"",
                "Bearer realm=\"https://a/t\",service=\"s\"",
            ][..],
            &["Basic realm=\"x, y\", Bearer realm=\"https://a/t\", service=\"s\""],
            &["Bearer realm=\"https://a/t\" , service = s, Basic realm=\"x\""],
            &["Negotiate, Basic, Bearer realm=\"https://a/t\",service=s"],
        ] {
            let chosen = Challenge::choose(values.iter().copied());
            assert_eq!(chosen, Some(bearer("https://a/t")), "{values:?}");
        }
        let odd = r#"Bearer realm="https://a/\", Basic x",service="s""#;
        let odd = Challenge::choose([odd].into_iter());
        assert_eq!(odd, Some(bearer("https://a/\", Basic x")));
        let basic = Challenge::choose(["Negotiate", "Basic realm=x"].into_iter());
        assert_eq!(basic, Some(Challenge::Basic));
        assert_eq!(Challenge::choose(["Negotiate"].into_iter()), None);
        assert_eq!(Challenge::choose(std::iter::empty()), None);
    }

    #[test]
    fn scopes_are_merged() {
        let scopes = Scopes::parse("repository:a:pull repository:b:pull");
        let more = Scopes::parse("repository:a:push,pull registry:catalog:* odd");
        let both = scopes.clone().merged(&more);
        assert_eq!(
            both.texts(),
            [
                "repository:a:pull,push",
                "repository:b:pull",
                "registry:catalog:*",
                "odd"
            ]
        );
        assert!(both.cover(&scopes) && both.cover(&more) && !scopes.cover(&more));
        assert!(scopes.cover(&Scopes::default()));
        assert_eq!(
            Scopes::parse("repository:host:5000/a:pull").texts(),
            ["repository:host:5000/a:pull"]
        );
    }

    proptest! {
        #[test]
        fn any_challenge_is_survived(value in ".{0,200}") {
            let _parsed = Challenge::parse(&value);
            let _chosen = Challenge::choose([value.as_str()].into_iter());
        }

        #[test]
        fn any_bearer_challenge_is_survived(value in "Bearer [a-z=\",\\\\ ]{0,80}") {
            let _parsed = Challenge::parse(&value);
        }
    }
}
