//! The D-Bus wire format (dbus-specification, "Type System", "Marshaling", "Message
//! Protocol"), as far as talking to systemd needs it: values are written in the host's
//! order, read in either, and whatever does not fit is an error, never a panic.

/// What cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed D-Bus message: {0}")]
pub(super) struct Malformed(&'static str);

/// Longest message taken. systemd's are far shorter; the format allows 128 MiB.
const MAX_MESSAGE: usize = 1 << 20;
/// Deepest nesting of values skipped.
const MAX_DEPTH: u8 = 32;
/// The part of a message whose length is fixed.
pub(super) const FIXED: usize = 16;

/// A value to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Str(String),
    Strs(Vec<String>),
    Bytes(Vec<u8>),
    U32s(Vec<u32>),
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Str(_) => "s",
            Self::Strs(_) => "as",
            Self::Bytes(_) => "ay",
            Self::U32s(_) => "au",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// Writes values one after the other, each at its alignment.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_ne_bytes());
    }

    /// A string or an object path.
    pub(super) fn string(&mut self, value: &str) {
        self.u32(length(value.len()));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        // All are constants of a few letters.
        self.0.push(u8::try_from(value.len()).unwrap_or(0));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    pub(super) fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.u32(u32::from(*value)),
            Value::I32(value) => self.u32(u32::from_ne_bytes(value.to_ne_bytes())),
            Value::U32(value) => self.u32(*value),
            Value::I64(value) => self.u64(u64::from_ne_bytes(value.to_ne_bytes())),
            Value::U64(value) => self.u64(*value),
            Value::Str(value) => self.string(value),
            Value::Strs(values) => self.array(4, |w| values.iter().for_each(|v| w.string(v))),
            Value::Bytes(bytes) => self.array(1, |w| bytes.iter().for_each(|b| w.byte(*b))),
            Value::U32s(values) => self.array(4, |w| values.iter().for_each(|v| w.u32(*v))),
            Value::Pairs(pairs) => self.array(8, |w| {
                for (first, second) in pairs {
                    w.align(8);
                    w.string(first);
                    w.string(second);
                }
            }),
        }
    }

    /// An array: its length in bytes, the padding of its first element (not counted), and
    /// the elements.
    pub(super) fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - start).to_ne_bytes();
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
    }

    /// `a(sv)`: names with values.
    pub(super) fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.string(name);
                writer.variant(value);
            }
        });
    }

    pub(super) fn align(&mut self, to: usize) {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Everything sent is far below 4 GiB; what is not would be refused by the other side.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A call of a method.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// Of the body.
    pub(super) signature: &'a str,
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

impl Call<'_> {
    /// The whole message.
    pub(super) fn message(&self, serial: u32, body: Writer) -> Vec<u8> {
        let body = body.bytes();
        let mut message = Writer::default();
        message.byte(if cfg!(target_endian = "big") {
            b'B'
        } else {
            b'l'
        });
        message.byte(METHOD_CALL);
        message.byte(0); // no flags
        message.byte(1); // version
        message.u32(length(body.len()));
        message.u32(serial);
        message.array(8, |fields| {
            let mut field = |code: u8, kind: &str, value: &str| {
                fields.align(8);
                fields.byte(code);
                fields.signature(kind);
                if kind == "g" {
                    fields.signature(value);
                } else {
                    fields.string(value);
                }
            };
            field(PATH, "o", self.path);
            field(INTERFACE, "s", self.interface);
            field(MEMBER, "s", self.member);
            field(DESTINATION, "s", self.destination);
            if !self.signature.is_empty() {
                field(SIGNATURE, "g", self.signature);
            }
        });
        message.align(8);
        let mut message = message.bytes();
        message.extend(body);
        message
    }
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Reply to the call of this serial.
    Return { to: u32, body: Body },
    /// Refusal of the call of this serial.
    Error { to: u32, name: String, body: Body },
    /// Something has happened.
    Signal { member: String, body: Body },
    /// A call of ours, or a type of the future.
    Other,
}

/// Values to be read one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    bytes: Vec<u8>,
    at: usize,
    big: bool,
    signature: String,
}

/// The length of a whole message of which the fixed part is given.
pub(super) fn message_length(fixed: &[u8; FIXED]) -> Result<usize, Malformed> {
    let big = big_endian(fixed[0])?;
    let mut body = Body::new(fixed.to_vec(), big);
    body.at = 4;
    let length = body.length()?;
    body.at = 12;
    let fields = body.length()?;
    let total = (FIXED + fields).next_multiple_of(8) + length;
    if total > MAX_MESSAGE {
        return Err(Malformed("too long"));
    }
    Ok(total)
}

fn big_endian(mark: u8) -> Result<bool, Malformed> {
    match mark {
        b'l' => Ok(false),
        b'B' => Ok(true),
        _ => Err(Malformed("unknown byte order")),
    }
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
    let fixed = bytes.first_chunk::<FIXED>().ok_or(Malformed("too short"))?;
    if message_length(fixed)? != bytes.len() {
        return Err(Malformed("of another length than it says"));
    }
    let big = big_endian(fixed[0])?;
    let mut header = Body::new(bytes.to_vec(), big);
    header.at = 12;
    let end = header.length()? + FIXED;
    let (mut member, mut name, mut to) = (String::new(), String::new(), None);
    let mut signature = String::new();
    while header.at < end {
        header.align(8)?;
        let code = header.byte()?;
        let kind = header.signature()?;
        match (code, kind.as_str()) {
            (MEMBER, "s") => member = header.string()?,
            (ERROR_NAME, "s") => name = header.string()?,
            (REPLY_SERIAL, "u") => to = Some(header.u32()?),
            (SIGNATURE, "g") => signature = header.signature()?,
            _ => header.skip_all(kind.as_bytes())?,
        }
    }
    if header.at != end {
        return Err(Malformed("fields do not end where they should"));
    }
    header.align(8)?;
    let rest = bytes.get(header.at..).unwrap_or_default().to_vec();
    let body = Body {
        signature,
        ..Body::new(rest, big)
    };
    let serial = to.ok_or(Malformed("answers nothing"));
    Ok(match fixed[1] {
        METHOD_RETURN => Message::Return { to: serial?, body },
        ERROR => Message::Error {
            to: serial?,
            name,
            body,
        },
        SIGNAL => Message::Signal { member, body },
        _ => Message::Other,
    })
}

impl Body {
    fn new(bytes: Vec<u8>, big: bool) -> Self {
        Self {
            bytes,
            at: 0,
            big,
            signature: String::new(),
        }
    }

    /// Whether the values are of these types.
    pub(super) fn is(&self, signature: &str) -> bool {
        self.signature == signature
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed("too long"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("too short"))?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?.first().copied().unwrap_or(0))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let big = self.big;
        let bytes = self
            .take(4)?
            .first_chunk::<4>()
            .copied()
            .unwrap_or_default();
        Ok(if big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let length = self.u32()?;
        let length = usize::try_from(length).ok();
        length
            .filter(|length| *length <= MAX_MESSAGE)
            .ok_or(Malformed("too long"))
    }

    /// A string or an object path.
    pub(super) fn string(&mut self) -> Result<String, Malformed> {
        let length = self.length()?;
        self.text(length)
    }

    pub(super) fn signature(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }

    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let text = self.take(length)?.to_vec();
        if self.byte()? != 0 {
            return Err(Malformed("string without an end"));
        }
        String::from_utf8(text).map_err(|_| Malformed("string that is not UTF-8"))
    }

    fn skip_all(&mut self, mut signature: &[u8]) -> Result<(), Malformed> {
        while !signature.is_empty() {
            signature = self.skip(signature, MAX_DEPTH)?;
        }
        Ok(())
    }

    /// Skips one value and returns what is left of the signature.
    fn skip<'s>(&mut self, signature: &'s [u8], depth: u8) -> Result<&'s [u8], Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed("too deep"))?;
        let (kind, mut rest) = signature.split_first().ok_or(Malformed("bad signature"))?;
        let align = alignment(*kind)?;
        self.align(align)?;
        match kind {
            b's' | b'o' => drop(self.string()?),
            b'g' => drop(self.signature()?),
            b'v' => {
                let inner = self.signature()?;
                let rest = self.skip(inner.as_bytes(), depth)?;
                if !rest.is_empty() {
                    return Err(Malformed("variant of more than one value"));
                }
            }
            b'a' => {
                let length = self.length()?;
                let first = rest.first().ok_or(Malformed("bad signature"))?;
                self.align(alignment(*first)?)?;
                let end = self.at.checked_add(length).ok_or(Malformed("too long"))?;
                while self.at < end {
                    let before = self.at;
                    self.skip(rest, depth)?;
                    if self.at == before {
                        return Err(Malformed("empty element"));
                    }
                }
                if self.at != end {
                    return Err(Malformed("array does not end where it should"));
                }
                rest = complete(rest, depth)?;
            }
            b'(' | b'{' => {
                let close = if *kind == b'(' { b')' } else { b'}' };
                while rest.first() != Some(&close) {
                    rest = self.skip(rest, depth)?;
                }
                rest = rest.get(1..).unwrap_or_default();
            }
            _ => drop(self.take(align)?), // a number is as long as it is aligned
        }
        Ok(rest)
    }
}

fn alignment(kind: u8) -> Result<usize, Malformed> {
    match kind {
        b'y' | b'g' | b'v' => Ok(1),
        b'n' | b'q' => Ok(2),
        b'b' | b'i' | b'u' | b'h' | b's' | b'o' | b'a' => Ok(4),
        b'x' | b't' | b'd' | b'(' | b'{' => Ok(8),
        _ => Err(Malformed("unknown type")),
    }
}

/// What follows the first complete type of a signature.
fn complete(signature: &[u8], depth: u8) -> Result<&[u8], Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed("too deep"))?;
    let (kind, mut rest) = signature.split_first().ok_or(Malformed("bad signature"))?;
    match kind {
        b'a' => complete(rest, depth),
        b'(' | b'{' => {
            let close = if *kind == b'(' { b')' } else { b'}' };
            while rest.first() != Some(&close) {
                rest = complete(rest, depth)?;
            }
            Ok(rest.get(1..).unwrap_or_default())
        }
        kind => alignment(*kind).map(|_| rest),
    }
}

#[cfg(test)]
mod tests;
