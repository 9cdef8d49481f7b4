use super::*;
use proptest::prelude::*;

/// A message as systemd would send it.
fn message(kind: u8, fields: &[(u8, &str, u32, &str)], body: Writer) -> Vec<u8> {
    let body = body.bytes();
    let mut message = Writer::default();
    message.byte(b'l');
    message.byte(kind);
    message.byte(1);
    message.byte(1);
    message.u32(length(body.len()));
    message.u32(99);
    message.array(8, |w| {
        for (code, kind, number, text) in fields {
            w.align(8);
            w.byte(*code);
            w.signature(kind);
            match *kind {
                "u" => w.u32(*number),
                "g" => w.signature(text),
                _ => w.string(text),
            }
        }
    });
    message.align(8);
    let mut message = message.bytes();
    message.extend(body);
    message
}

#[test]
fn a_call_byte_by_byte() {
    let call = Call {
        destination: "d.e",
        path: "/p",
        interface: "i.f",
        member: "M",
        signature: "s",
    };
    let mut body = Writer::default();
    body.string("x");
    let bytes = call.message(7, body);
    assert_eq!(
        message_length(bytes.first_chunk().unwrap()).unwrap(),
        bytes.len()
    );
    assert_eq!(
        bytes[..16],
        [b'l', 1, 0, 1, 6, 0, 0, 0, 7, 0, 0, 0, 71, 0, 0, 0]
    );
    assert_eq!(bytes[16..32], *b"\x01\x01o\0\x02\0\0\0/p\0\0\0\0\0\0");
    assert_eq!(bytes[bytes.len() - 6..], *b"\x01\0\0\0x\0");
    assert!(matches!(parse(&bytes), Ok(Message::Other)));
}

#[test]
fn answers() {
    let mut body = Writer::default();
    body.string("/job/1");
    let fields = [(REPLY_SERIAL, "u", 7, ""), (SIGNATURE, "g", 0, "o")];
    let Ok(Message::Return { to: 7, mut body }) = parse(&message(METHOD_RETURN, &fields, body))
    else {
        panic!("no reply");
    };
    assert!(body.is("o"));
    assert_eq!(body.string().unwrap(), "/job/1");
    assert!(body.string().is_err());
    let fields = [(ERROR_NAME, "s", 0, "e.x"), (REPLY_SERIAL, "u", 8, "")];
    let error = parse(&message(ERROR, &fields, Writer::default())).unwrap();
    assert!(matches!(error, Message::Error { to: 8, name, .. } if name == "e.x"));
    let fields = [
        (MEMBER, "s", 0, "JobRemoved"),
        (42, "s", 0, "of the future"),
    ];
    let signal = parse(&message(SIGNAL, &fields, Writer::default())).unwrap();
    assert!(matches!(signal, Message::Signal { member, .. } if member == "JobRemoved"));
    assert!(parse(&message(METHOD_RETURN, &[], Writer::default())).is_err());
}

#[test]
fn properties_can_be_skipped() {
    let properties = [
        ("A", Value::Bool(true)),
        ("B", Value::U64(5)),
        ("C", Value::Str("x".into())),
        ("D", Value::Bytes(vec![1, 2, 3])),
        ("E", Value::U32s(vec![4])),
        ("F", Value::Pairs(vec![("a".into(), "b".into())])),
    ];
    let mut writer = Writer::default();
    writer.properties(&properties);
    writer.u32(77);
    let mut body = Body::new(writer.bytes(), cfg!(target_endian = "big"));
    body.skip_all(b"a(sv)").unwrap();
    assert_eq!(body.u32().unwrap(), 77);
}

proptest! {
    #[test]
    fn anything_may_come(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _any = parse(&bytes);
        if let [mark, kind, _, _, a, b, c, d, ..] = bytes.as_mut_slice() {
            (*mark, *kind) = (b'l', 2);
            (*a, *b, *c, *d) = (8, 0, 0, 0);
        }
        let _any = parse(&bytes);
    }

    #[test]
    fn any_signature_ends(
        signature in "[ybnqiuxtdsogav(){}]{0,40}",
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let _any = Body::new(bytes, false).skip_all(signature.as_bytes());
    }
}
