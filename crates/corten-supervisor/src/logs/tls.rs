//! TLS on a connection to a syslog daemon, without a thread: what the kernel does not take now is
//! kept, and written before anything else.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use corten_tls::{Identity, Trust, certificates, client};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// How a daemon is known, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// More authorities than the machine's.
    pub authorities: Option<PathBuf>,
    /// A certificate of our own, with its chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Believe any certificate.
    pub any: bool,
}

fn wrong(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl TlsFiles {
    fn config(&self) -> io::Result<ClientConfig> {
        let more = self.authorities.as_deref().map(certificates).transpose();
        let more = more.map_err(wrong)?.unwrap_or_default();
        let trust = if self.any {
            Trust::Any
        } else {
            Trust::Machine(more)
        };
        let identity = match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                Some(Identity::read(certificate, key).map_err(wrong)?)
            }
            _ => return Err(wrong("a certificate and its key go together")),
        };
        client(trust, identity).map_err(wrong)
    }
}

/// A connection that TLS was agreed on, not blocking.
pub(super) struct Tls {
    stream: TcpStream,
    session: Box<ClientConnection>,
}

impl Tls {
    /// Agrees on TLS; `to`: `host:port`.
    pub(super) async fn agree(
        stream: tokio::net::TcpStream,
        to: &str,
        files: &TlsFiles,
    ) -> io::Result<Self> {
        let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(wrong)?;
        let config = Arc::new(files.config()?);
        let mut session = ClientConnection::new(config, name).map_err(wrong)?;
        while session.is_handshaking() || session.wants_write() {
            if session.wants_write() {
                stream.writable().await?;
                let mut out = Ready(|bytes: &[u8]| stream.try_write(bytes));
                again(session.write_tls(&mut out))?;
            } else {
                stream.readable().await?;
                let mut into = Ready(|bytes: &mut [u8]| stream.try_read(bytes));
                if again(session.read_tls(&mut into))? == Some(0) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if let Err(error) = session.process_new_packets() {
                    // The daemon is told why; whether it hears it changes nothing.
                    let mut out = Ready(|bytes: &[u8]| stream.try_write(bytes));
                    session.write_tls(&mut out).ok();
                    return Err(wrong(error));
                }
            }
        }
        Ok(Self {
            stream: stream.into_std()?,
            session: Box::new(session),
        })
    }

    /// Takes a part of a message once all before it has gone.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<usize> {
        self.listen()?;
        self.flush()?;
        let taken = self.session.writer().write(message)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Takes what the daemon has said: of a certificate that it refuses it says so after TLS has
    /// been agreed on, and one that has closed the connection reads nothing any more.
    fn listen(&mut self) -> io::Result<()> {
        loop {
            match self.session.read_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            let state = self.session.process_new_packets().map_err(wrong)?;
            if state.peer_has_closed() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            // No daemon has anything to say.
            let mut said = vec![0; state.plaintext_bytes_to_read()];
            self.session.reader().read_exact(&mut said)?;
        }
    }

    /// Writes what is left.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(&mut self.stream)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush()
    }
}

/// A stream that may have to be waited for once more.
fn again(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

/// Reads or writes what can be now.
struct Ready<F>(F);

impl<F: FnMut(&[u8]) -> io::Result<usize>> io::Write for Ready<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&mut [u8]) -> io::Result<usize>> io::Read for Ready<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (self.0)(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;
    use std::process::Command;

    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    fn openssl(dir: &Path, args: &[&str]) {
        let done = Command::new("openssl").args(args).current_dir(dir).output();
        let done = done.expect("openssl");
        assert!(done.status.success(), "{done:?}");
    }

    /// A daemon for one connection, which must have a certificate; what it is sent.
    fn daemon(dir: &Path) -> (u16, std::thread::JoinHandle<io::Result<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = certificates(&dir.join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own[0].clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots.into(),
            provider.clone(),
        );
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(own, key)
            .unwrap();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            let session = rustls::ServerConnection::new(config.into()).map_err(wrong)?;
            let mut text = String::new();
            rustls::StreamOwned::new(session, stream).read_to_string(&mut text)?;
            Ok(text)
        });
        (port, serving)
    }

    async fn connected(port: u16, host: &str, files: &TlsFiles) -> io::Result<Tls> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        Tls::agree(stream, &format!("{host}:{port}"), files).await
    }

    #[tokio::test]
    async fn daemons_are_known_by_their_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let made = [
            "req",
            "-x509",
            "-newkey",
            "ed25519",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ];
        openssl(dir, &made);
        let files = TlsFiles {
            authorities: Some(dir.join("cert.pem")),
            certificate: Some(dir.join("cert.pem")),
            key: Some(dir.join("key.pem")),
            any: false,
        };
        // Whole, however much it is.
        let (port, serving) = daemon(dir);
        let mut tls = connected(port, "localhost", &files).await.unwrap();
        let message = "a line of a container\n".repeat(50_000);
        let mut rest = message.as_bytes();
        while !rest.is_empty() {
            match tls.send(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        while let Err(error) = tls.end() {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(serving.join().unwrap().unwrap() == message);

        let unknown = TlsFiles {
            authorities: None,
            ..files.clone()
        };
        for (host, files, why) in [
            ("localhost", &unknown, "certificate"),
            ("elsewhere", &files, "certificate not valid for name"),
        ] {
            let (port, serving) = daemon(dir);
            let error = connected(port, host, files).await.err().unwrap();
            assert!(error.to_string().contains(why), "{error}");
            assert!(serving.join().unwrap().is_err());
        }
        // A daemon that does not know us says so when we believe that all is well.
        let nobody = TlsFiles {
            certificate: None,
            key: None,
            ..files.clone()
        };
        let (port, serving) = daemon(dir);
        let mut tls = connected(port, "localhost", &nobody).await.unwrap();
        assert!(serving.join().unwrap().is_err());
        assert!(tls.send(b"a line\n").is_err());
        // Whoever it is, if that is what is wanted.
        let (port, serving) = daemon(dir);
        let any = TlsFiles {
            any: true,
            ..unknown
        };
        let mut tls = connected(port, "elsewhere", &any).await.unwrap();
        tls.send(b"to anybody\n").unwrap();
        tls.end().unwrap();
        assert_eq!(serving.join().unwrap().unwrap(), "to anybody\n");
        let half = TlsFiles { key: None, ..any };
        let error = half.config().err().unwrap();
        assert!(error.to_string().contains("go together"), "{error}");
    }
}
