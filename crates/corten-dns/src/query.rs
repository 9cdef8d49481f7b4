//! A question as it came in.

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder};
use domain::base::{Message, MessageBuilder, ParsedName, Question, StaticCompressor, ToName};

/// What anybody can take by UDP who says nothing else (RFC 1035, section 4.2.1).
pub(crate) const PLAIN: usize = 512;
/// Longest datagram.
const DATAGRAM: usize = 65_507;
/// Longest message over TCP.
const STREAM: usize = 65_535;
/// What we take by UDP, told where a client speaks EDNS.
pub(crate) const OURS: u16 = 4096;
/// Our own answer's record that EDNS is spoken, without options.
const OPT: usize = 11;

/// How a question came, and its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A question that can be understood.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    message: &'a Message<[u8]>,
    question: Question<ParsedName<&'a [u8]>>,
    edns: Option<u16>,
    transport: Transport,
}

/// An answer in the making.
type Answer = AnswerBuilder<StaticCompressor<Vec<u8>>>;

impl<'a> Query<'a> {
    /// Reads a message. `Err`: what is to be said instead, if anything.
    pub(crate) fn read(bytes: &'a [u8], transport: Transport) -> Result<Self, Option<Vec<u8>>> {
        let message = Message::from_slice(bytes).map_err(|_| None)?;
        let header = message.header();
        if header.qr() {
            return Err(None); // answering answers goes on for ever
        }
        if header.opcode() != Opcode::QUERY {
            return Err(Some(bare(message, Rcode::NOTIMP)));
        }
        let question = message
            .sole_question()
            .map_err(|_| Some(bare(message, Rcode::FORMERR)))?;
        let edns = message.opt().map(|opt| opt.udp_payload_size());
        Ok(Self {
            message,
            question,
            edns,
            transport,
        })
    }

    pub(crate) fn message(&self) -> &Message<[u8]> {
        self.message
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    pub(crate) fn kind(&self) -> Rtype {
        self.question.qtype()
    }

    /// Of the Internet, as all names are but those of servers' versions.
    pub(crate) fn is_internet(&self) -> bool {
        matches!(self.question.qclass(), Class::IN | Class::ANY)
    }

    /// The name as text without its last dot; `None` if text cannot tell it (no name of ours).
    pub(crate) fn name(&self) -> Option<String> {
        let mut text = String::new();
        for label in self
            .question
            .qname()
            .iter()
            .filter(|label| !label.is_root())
        {
            let label = std::str::from_utf8(label.as_slice()).ok()?;
            if label.contains('.') {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text += label;
        }
        Some(text)
    }

    pub(crate) fn owner(&self) -> impl ToName {
        self.question.qname().ref_octets()
    }

    /// The longest answer its asker can take.
    pub(crate) fn limit(&self) -> usize {
        match self.transport {
            Transport::Tcp => STREAM,
            Transport::Udp => usize::from(self.edns.unwrap_or(0)).clamp(PLAIN, DATAGRAM),
        }
    }

    /// An answer that is to be filled.
    pub(crate) fn answer(&self) -> Answer {
        let mut answer = builder().start_error(self.message, Rcode::NOERROR);
        answer.header_mut().set_ra(true);
        let edns = if self.edns.is_some() { OPT } else { 0 };
        answer.set_push_limit(self.limit() - edns);
        answer
    }

    /// Ends an answer that was begun with [`answer`](Self::answer).
    pub(crate) fn finish(&self, answer: Answer) -> Vec<u8> {
        let mut answer = answer.additional();
        answer.clear_push_limit();
        if self.edns.is_some() {
            speak_edns(&mut answer);
        }
        answer.finish().into_target()
    }

    /// An answer without records.
    pub(crate) fn refuse(&self, code: Rcode) -> Vec<u8> {
        let mut answer = self.answer();
        answer.header_mut().set_rcode(code);
        self.finish(answer)
    }

    /// An answer that says that the whole one is longer than its asker can take.
    pub(crate) fn truncated(&self) -> Vec<u8> {
        let mut answer = self.answer();
        answer.header_mut().set_tc(true);
        self.finish(answer)
    }
}

/// Says that something is wrong with a message whose question cannot be read or is none.
fn bare(message: &Message<[u8]>, code: Rcode) -> Vec<u8> {
    let mut answer = builder();
    let header = answer.header_mut();
    header.set_id(message.header().id());
    header.set_qr(true);
    header.set_opcode(message.header().opcode());
    header.set_rd(message.header().rd());
    header.set_ra(true);
    header.set_rcode(code);
    answer.finish().into_target()
}

fn builder() -> MessageBuilder<StaticCompressor<Vec<u8>>> {
    let target = StaticCompressor::new(Vec::with_capacity(PLAIN));
    match MessageBuilder::from_target(target) {
        Ok(builder) => builder,
        // A vector takes whatever is written to it.
        Err(never) => match never {},
    }
}

fn speak_edns(answer: &mut AdditionalBuilder<StaticCompressor<Vec<u8>>>) {
    let told = answer.opt(|opt| {
        opt.set_udp_payload_size(OURS);
        Ok(())
    });
    debug_assert!(told.is_ok(), "the limit has room for it");
}
