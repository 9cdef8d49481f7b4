//! Names of containers and volumes, ids, and names made up for containers without one.

use rand::RngExt;

use super::bad;
use crate::error::EngineError;

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, Docker's rule for names.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() >= 2
        && bytes[0].is_ascii_alphanumeric()
        && bytes[1..]
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

/// Checks a container's name and strips one leading slash.
pub(crate) fn container_name(name: &str) -> Result<&str, EngineError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    if is_valid_name(bare) {
        return Ok(bare);
    }
    Err(bad(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// Checks a volume's name.
pub(crate) fn volume_name(name: &str) -> Result<(), EngineError> {
    if is_valid_name(name) && name.len() <= 255 {
        return Ok(());
    }
    if name.len() == 1 {
        return Err(bad(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric \
             characters"
        )));
    }
    Err(bad(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, \
         use absolute path"
    )))
}

/// A fresh id: 64 lower-case hexadecimal digits, whose first twelve are not all decimal
/// (a short id must not look like a number).
pub(crate) fn new_id() -> String {
    loop {
        let mut bytes = [0u8; 32];
        // Of the kernel: a generator of our own asks the processor what it is before the first number.
        let flags = rustix::rand::GetRandomFlags::empty();
        if rustix::rand::getrandom(&mut bytes[..], flags) != Ok(bytes.len()) {
            rand::rng().fill(&mut bytes);
        }
        let id = hex::encode(bytes);
        if id.as_bytes()[..12].iter().any(|b| !b.is_ascii_digit()) {
            return id;
        }
    }
}

/// A made-up name, `adjective_scientist`; with a digit from the second try on.
pub(crate) fn made_up_name(attempt: u32) -> String {
    let mut rng = rand::rng();
    let left = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let right = SCIENTISTS[rng.random_range(0..SCIENTISTS.len())];
    if attempt == 0 {
        format!("{left}_{right}")
    } else {
        format!(
            "{left}_{right}{}",
            rng.random_range(0..10_u32.saturating_pow(attempt.min(6)))
        )
    }
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "airy", "amber", "apt", "bold", "brave", "breezy", "bright", "brisk", "calm",
    "candid", "careful", "cheery", "civil", "clear", "clever", "cool", "copper", "cosmic", "cozy",
    "crisp", "curious", "daring", "dapper", "deft", "eager", "earnest", "easy", "exact", "fair",
    "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "handy", "happy",
    "hardy", "hazel", "honest", "humble", "ideal", "jolly", "keen", "kind", "lively", "loyal",
    "lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient",
    "plucky", "polite", "proud", "quick", "quiet", "rapid", "ready", "robust", "rosy", "rustic",
    "serene", "sharp", "silent", "silver", "sleek", "smart", "snappy", "solid", "spry", "steady",
    "stoic", "sturdy", "sunny", "swift", "tender", "tidy", "tranquil", "true", "upbeat", "valiant",
    "vivid", "warm", "wise", "witty", "zesty",
];

const SCIENTISTS: &[&str] = &[
    "agnesi",
    "alhazen",
    "ampere",
    "anning",
    "archimedes",
    "avogadro",
    "babbage",
    "bernoulli",
    "bohr",
    "boltzmann",
    "bose",
    "brahe",
    "carnot",
    "cauchy",
    "cavendish",
    "celsius",
    "cerf",
    "chandrasekhar",
    "codd",
    "copernicus",
    "coulomb",
    "curie",
    "dalton",
    "darwin",
    "diffie",
    "dijkstra",
    "dirac",
    "einstein",
    "engelbart",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "fourier",
    "franklin",
    "galileo",
    "galois",
    "gauss",
    "germain",
    "godel",
    "hamilton",
    "hamming",
    "heisenberg",
    "hertz",
    "hilbert",
    "hodgkin",
    "hooke",
    "hopper",
    "hubble",
    "humboldt",
    "huygens",
    "hypatia",
    "joule",
    "kepler",
    "khwarizmi",
    "knuth",
    "kovalevskaya",
    "lagrange",
    "lamarr",
    "lamport",
    "laplace",
    "lavoisier",
    "leavitt",
    "leibniz",
    "linnaeus",
    "liskov",
    "lorentz",
    "lovelace",
    "maxwell",
    "mcclintock",
    "meitner",
    "mendel",
    "mendeleev",
    "mirzakhani",
    "newton",
    "nightingale",
    "noether",
    "ohm",
    "pascal",
    "pasteur",
    "pauling",
    "payne",
    "planck",
    "poincare",
    "ptolemy",
    "raman",
    "ramanujan",
    "ritchie",
    "rubin",
    "sagan",
    "shannon",
    "sinoussi",
    "snow",
    "tesla",
    "thompson",
    "torvalds",
    "turing",
    "volta",
    "wing",
    "wozniak",
    "wu",
    "yalow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["web", "my-running-app", "a1", "A_.-", "0x"] {
            assert!(container_name(good).is_ok(), "{good}");
        }
        for wrong in ["", "a", "-ab", "_ab", "a b", "a/b", "ab\u{e9}", ".ab"] {
            assert!(container_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(container_name("/web").unwrap(), "web");
    }

    #[test]
    fn made_up_names_are_valid() {
        for attempt in 0..4 {
            for _ in 0..50 {
                let name = made_up_name(attempt);
                assert!(is_valid_name(&name), "{name}");
            }
        }
    }

    #[test]
    fn ids_are_64_hex() {
        let id = new_id();
        assert_eq!(id.len(), 64);
        assert!(
            id.bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
        assert_ne!(id, new_id());
    }
}
