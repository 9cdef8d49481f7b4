//! Lists of small numbers as the kernel writes them: `0-3,7`.

/// The largest number accepted: more processors or memory nodes than any kernel is built
/// for.
const MAX: u16 = 8191;

/// Whether it is such a list, and nothing but it.
pub fn is_list(text: &str) -> bool {
    !text.contains(char::is_whitespace) && parse(text).is_some()
}

/// Whether every number of `wanted` is in `available`; `false` where either is no list.
pub fn is_within(wanted: &str, available: &str) -> bool {
    match (parse(wanted), parse(available)) {
        (Some(wanted), Some(available)) => wanted.iter().all(|n| available.contains(n)),
        _ => false,
    }
}

/// Every number of the list, in order; `None` if it is not such a list.
pub(crate) fn parse(text: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|n| *n <= MAX);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        numbers.extend(first..=last);
        // More than there are: a short text must not become a long list.
        if numbers.len() > usize::from(MAX) + 1 {
            return None;
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists() {
        assert_eq!(parse("0-3,7"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(parse("5"), Some(vec![5]));
        assert_eq!(parse("0-8191").map(|all| all.len()), Some(8192));
        for wrong in ["", "0-8191,0", "3-1", "a", "1,,2", "-", "0-99999999"] {
            assert!(!is_list(wrong), "{wrong}");
        }
    }

    #[test]
    fn within() {
        assert!(is_within("0,2-3", "0-3"));
        assert!(!is_within("0,4", "0-3"));
        assert!(!is_within("x", "0-3"));
    }

    proptest! {
        #[test]
        fn anything(text in ".*") {
            parse(&text);
        }
    }
}
