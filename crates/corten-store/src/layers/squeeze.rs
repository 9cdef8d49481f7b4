//! Compressing a layer's tar as it is asked for. The same bytes come of the same tar every time.

use std::io::{self, Write};

use corten_oci::media_type;
use flate2::GzBuilder;
use flate2::write::GzEncoder;

/// How a layer is to be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Squeeze {
    /// What with.
    pub with: Squeezer,
    /// How much; the format's own level when absent.
    pub level: Option<i32>,
    /// Also layers that are compressed otherwise already.
    pub force: bool,
}

/// What a layer is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squeezer {
    /// Nothing.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Default for Squeeze {
    fn default() -> Self {
        Self {
            with: Squeezer::Gzip,
            level: None,
            force: false,
        }
    }
}

impl Squeezer {
    /// The lowest and the highest level.
    #[must_use]
    pub fn levels(self) -> Option<(i32, i32)> {
        match self {
            Self::Plain => None,
            Self::Gzip => Some((0, 9)),
            Self::Zstd => Some((0, 22)),
        }
    }

    /// The media type of what comes out.
    #[must_use]
    pub fn layer_type(self) -> &'static str {
        match self {
            Self::Plain => media_type::DOCKER_LAYER,
            Self::Gzip => media_type::DOCKER_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

/// Writes what it is given compressed to something.
pub(super) enum Squeezed<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Squeezed<W> {
    pub(super) fn new(how: Squeeze, inner: W) -> io::Result<Self> {
        Ok(match how.with {
            Squeezer::Plain => Self::Plain(inner),
            Squeezer::Gzip => {
                let level = how.level.and_then(|level| u32::try_from(level).ok());
                let level = level.map_or_else(flate2::Compression::default, |level| {
                    flate2::Compression::new(level.min(9))
                });
                Self::Gzip(GzBuilder::new().mtime(0).write(inner, level))
            }
            Squeezer::Zstd => Self::Zstd(zstd::Encoder::new(inner, how.level.unwrap_or(0))?),
        })
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(inner) => Ok(inner),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Squeezed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(inner) => inner.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
