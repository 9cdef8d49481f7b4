//! Variables of a word of a Dockerfile, whatever the lexer's settings.
#![no_main]

use corten_dockerfile::Lexer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (settings, word) = input;
    let lexer = Lexer::new(if settings & 1 == 0 { '\\' } else { '`' })
        .raw_quotes(settings & 2 != 0)
        .raw_escapes(settings & 4 != 0)
        .keep_unset(settings & 8 != 0);
    let lookup = |name: &str| match name {
        "a" => Some("x/*y*/z".to_owned()),
        "b" => Some(String::new()),
        _ => None,
    };
    let _ = lexer.word(word, &lookup);
    let _ = lexer.words(word, &lookup);
});
