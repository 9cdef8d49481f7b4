//! An entry as the `tar` crate has it, with its PAX records as they are.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

use super::pax::{Pax, Records};

/// One entry of an archive; its content is what is read of it.
pub struct Entry<'e, 'a, R: Read> {
    entry: &'e mut tar::Entry<'a, R>,
    pax: &'e Pax,
}

impl<'e, 'a, R: Read> Entry<'e, 'a, R> {
    pub(super) fn new(entry: &'e mut tar::Entry<'a, R>, pax: &'e Pax) -> Self {
        Self { entry, pax }
    }

    /// Its header. What PAX records say instead is not in it.
    #[must_use]
    pub fn header(&self) -> &tar::Header {
        self.entry.header()
    }

    /// Bytes of content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entry.size()
    }

    /// Its name.
    #[must_use]
    pub fn path_bytes(&self) -> Cow<'_, [u8]> {
        let found = self.entry.path_bytes();
        match self.pax.restored(b"path", &found) {
            Some(name) => Cow::Borrowed(name),
            None => found,
        }
    }

    /// What it is a link to, if anything.
    #[must_use]
    pub fn link_name_bytes(&self) -> Option<Cow<'_, [u8]>> {
        let found = self.entry.link_name_bytes()?;
        Some(match self.pax.restored(b"linkpath", &found) {
            Some(name) => Cow::Borrowed(name),
            None => found,
        })
    }

    /// The PAX records about it.
    #[must_use]
    pub fn records(&self) -> Records<'e> {
        self.pax.records()
    }
}

impl<R: Read> fmt::Debug for Entry<'_, '_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(&self.path_bytes()).into_owned();
        f.debug_struct("Entry")
            .field("name", &name)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Read for Entry<'_, '_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.entry.read(out)
    }
}
