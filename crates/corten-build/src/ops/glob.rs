//! Go's `path.Match` on one component of a path: `*`, `?`, `[…]`, `\`.

/// Whether a component has to be matched rather than opened.
pub(crate) fn is_pattern(component: &str) -> bool {
    component.contains(['*', '?', '[', '\\'])
}

/// Whether a name matches. A malformed pattern matches nothing.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    run(&pattern, &name)
}

fn run(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|skipped| run(rest, &name[skipped..])),
        ['?', rest @ ..] => !name.is_empty() && run(rest, &name[1..]),
        ['[', rest @ ..] => {
            let Some((&first, tail)) = name.split_first() else {
                return false;
            };
            class(rest, first).is_some_and(|(inside, after)| inside && run(after, tail))
        }
        ['\\', escaped, rest @ ..] => name.first() == Some(escaped) && run(rest, &name[1..]),
        [literal, rest @ ..] => name.first() == Some(literal) && run(rest, &name[1..]),
    }
}

/// A bracket expression: whether it has the character, and what follows it.
fn class(pattern: &[char], c: char) -> Option<(bool, &[char])> {
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut inside = false;
    let mut first = true;
    loop {
        if let [']', after @ ..] = rest
            && !first
        {
            return Some((inside != negated, after));
        }
        first = false;
        let low = bound(&mut rest)?;
        let high = if let ['-', after @ ..] = rest {
            rest = after;
            bound(&mut rest)?
        } else {
            low
        };
        inside |= (low..=high).contains(&c);
    }
}

fn bound(pattern: &mut &[char]) -> Option<char> {
    let (found, rest) = match *pattern {
        ['\\', escaped, rest @ ..] => (*escaped, rest),
        ['-' | ']' | '\\', ..] | [] => return None,
        [c, rest @ ..] => (*c, rest),
    };
    *pattern = rest;
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn as_go_does() {
        for (pattern, name, expected) in [
            ("*.go", "main.go", true),
            ("*.go", "main.rs", false),
            ("m*n.?o", "main.go", true),
            ("[a-m]ain*", "main.go", true),
            ("[^a-m]ain*", "main.go", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[", "[", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
