//! Content digests (`sha256:…`, `sha512:…`) and the identities built from them.
//!
//! Implements image-spec `descriptor.md` "Digests": the registered algorithms only,
//! lower-case hex of the exact length. `DiffId` (digest of an uncompressed layer tar)
//! and `ChainId` (image-spec `config.md` "Layer ChainID") are separate types so that
//! a compressed blob's digest can never stand in for a layer's identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// Why a digest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `:` between algorithm and hex.
    #[error("invalid digest \"{0}\": expected ALGORITHM:HEX")]
    Format(String),
    /// An algorithm other than sha256 and sha512.
    #[error("unsupported digest algorithm \"{algorithm}\" in \"{digest}\"")]
    Algorithm {
        /// The whole input.
        digest: String,
        /// The part before the colon.
        algorithm: String,
    },
    /// Wrong length or characters other than lower-case hex.
    #[error("invalid digest \"{digest}\": expected {expected} lower-case hex characters")]
    Hex {
        /// The whole input.
        digest: String,
        /// How many characters the algorithm needs.
        expected: usize,
    },
}

/// The registered digest algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the default.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The algorithm's registered name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Characters of hex a digest of this algorithm has.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A content digest, always valid: `algorithm:hex`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: Box<str>,
    algorithm: Algorithm,
}

impl Digest {
    /// SHA-256 of a byte slice.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut digester = Digester::sha256();
        digester.update(bytes);
        digester.finish()
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hex part.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first twelve hex characters, as Docker prints ids.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    fn from_parts(algorithm: Algorithm, hex: &str) -> Self {
        Self {
            text: format!("{}:{hex}", algorithm.as_str()).into(),
            algorithm,
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        let (name, hex) = s
            .split_once(':')
            .ok_or_else(|| DigestError::Format(s.into()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => {
                return Err(DigestError::Algorithm {
                    digest: s.into(),
                    algorithm: other.into(),
                });
            }
        };
        let expected = algorithm.hex_len();
        let is_lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != expected || !hex.bytes().all(is_lower_hex) {
            return Err(DigestError::Hex {
                digest: s.into(),
                expected,
            });
        }
        Ok(Self::from_parts(algorithm, hex))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A running hash that ends in a [`Digest`]. Also an [`std::io::Write`] sink.
#[derive(Clone, Debug)]
pub struct Digester(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Digester {
    /// A SHA-256 digester.
    #[must_use]
    pub fn sha256() -> Self {
        Self::new(Algorithm::Sha256)
    }

    /// A digester of the given algorithm (use the algorithm of the digest to verify).
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(Sha512::new())),
        })
    }

    /// Feeds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    /// The digest of everything fed.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(h) => Digest::from_parts(Algorithm::Sha256, &hex::encode(h.finalize())),
            State::Sha512(h) => Digest::from_parts(Algorithm::Sha512, &hex::encode(h.finalize())),
        }
    }
}

impl std::io::Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl $name {
            /// The underlying digest.
            #[must_use]
            pub fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(s: &str) -> Result<Self, DigestError> {
                s.parse().map(Self)
            }
        }
    };
}

identity! {
    /// Digest of a layer's uncompressed tar (`rootfs.diff_ids` of an image config).
    DiffId
}
identity! {
    /// Identity of a stack of layers (image-spec `config.md`, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// The chain id of a stack, bottom layer first; `None` for an empty stack.
    #[must_use]
    pub fn of(stack: &[DiffId]) -> Option<Self> {
        let (first, rest) = stack.split_first()?;
        Some(rest.iter().fold(Self(first.0.clone()), |chain, diff| {
            Self(Digest::of(format!("{chain} {diff}").as_bytes()))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_exact_digests() {
        let good = format!("sha256:{}", "a".repeat(64));
        assert_eq!(good.parse::<Digest>().unwrap().as_str(), good);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "md5:aa",
            &format!("sha256:{}", "A".repeat(64)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad} must be refused");
        }
    }

    #[test]
    fn digests_the_empty_string() {
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn chain_of_one_layer_is_its_diff_id() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(std::slice::from_ref(&a)).unwrap().0, a.0);
        let two = ChainId::of(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(two.0, Digest::of(format!("{a} {b}").as_bytes()));
    }
}
