//! Output of a process without a terminal: `stdcopy` frames of 8 bytes header (stream, three
//! zeros, length as big-endian u32) and payload (Engine API, "Attach to a container").

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HEADER: usize = 8;
const CHUNK: usize = 32 * 1024;

/// Copies frames to the two outputs until the input ends.
pub(crate) async fn copy<R, O, E>(input: &mut R, out: &mut O, err: &mut E) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let mut header = [0_u8; HEADER];
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        match input.read(&mut header[..1]).await? {
            0 => return Ok(()),
            _ => {
                input.read_exact(&mut header[1..]).await?;
            }
        }
        let mut left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        while left > 0 {
            let room = left.min(CHUNK);
            let read = input.read(&mut buffer[..room]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
            match header[0] {
                0 | 1 => out.write_all(&buffer[..read]).await?,
                2 => err.write_all(&buffer[..read]).await?,
                3 => {
                    let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    return Err(io::Error::other(format!(
                        "error from daemon in stream: {text}"
                    )));
                }
                other => {
                    return Err(io::Error::other(format!(
                        "Unrecognized input header: {other}"
                    )));
                }
            }
        }
        out.flush().await?;
        err.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[tokio::test]
    async fn splits_streams() {
        let input = [
            frame(1, b"out"),
            frame(2, b"err"),
            frame(1, b""),
            frame(1, b"put"),
        ]
        .concat();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        copy(&mut input.as_slice(), &mut out, &mut err)
            .await
            .unwrap();
        assert_eq!(
            (out.as_slice(), err.as_slice()),
            (b"output".as_slice(), b"err".as_slice())
        );
    }

    #[tokio::test]
    async fn refuses_what_is_no_frame() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for input in [
            &frame(9, b"x")[..],
            &frame(1, b"abc")[..9],
            b"\x01\0\0",
            &frame(3, b"oops")[..],
        ] {
            assert!(copy(&mut &input[..], &mut out, &mut err).await.is_err());
        }
    }
}
