//! A connection that breaks: stands before a server and counts what goes through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What has gone through, and when to break.
#[derive(Default)]
pub(crate) struct Wire {
    /// Bytes to the server, in all.
    pub(crate) up: AtomicU64,
    /// A connection breaks after so many bytes to the server.
    pub(crate) cut_up: AtomicU64,
    /// So many connections do.
    pub(crate) cuts: AtomicU64,
}

impl Wire {
    /// A wire to a server's address, and its own.
    pub(crate) async fn to(server: String) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let wire = Arc::new(Self::default());
        let shared = wire.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(shared.clone().carry(client, server));
            }
        });
        (wire, address)
    }

    async fn carry(self: Arc<Self>, client: TcpStream, server: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let down = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        });
        let mut sent = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
            sent += count as u64;
            self.up.fetch_add(count as u64, Ordering::Relaxed);
            let limit = self.cut_up.load(Ordering::Relaxed);
            let left = || {
                let take = |left: u64| left.checked_sub(1);
                let order = Ordering::Relaxed;
                self.cuts.fetch_update(order, order, take).is_ok()
            };
            if limit > 0 && sent > limit && left() {
                break;
            }
        }
        down.abort();
    }
}
