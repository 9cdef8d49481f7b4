//! A child in namespaces of a user namespace that is *joined*. New namespaces must belong
//! to that user namespace, and a process that has entered it does not get back; so a
//! process in between enters it, clones the child on the caller's behalf (`CLONE_PARENT`)
//! and is gone.

use std::os::fd::{AsFd as _, BorrowedFd};

use crate::channel::{self, Message};
use crate::create::ChildGuard;
use crate::error::{RuntimeError, Step};
use crate::sys::{self, Cloned};

/// Like `clone3` with the flags `enter` returns, after `enter` has been run in the
/// process in between. The child is the caller's.
pub(crate) fn clone_within(
    cgroup: Option<BorrowedFd<'_>>,
    enter: impl FnOnce() -> Result<u64, RuntimeError>,
) -> Result<Cloned, RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Clone, "", errno);
    let (ours, theirs) = channel::pair()?;
    match sys::clone3(0, cgroup).map_err(fail)? {
        Cloned::Parent { pid, pidfd } => {
            let between = ChildGuard::new(pid, pidfd);
            drop(theirs);
            match channel::receive(ours.as_fd())? {
                Message::Born(pid, pidfd) => {
                    let born = ChildGuard::new(pid, pidfd);
                    between.reap()?;
                    let pidfd = born.disarm();
                    Ok(Cloned::Parent { pid, pidfd })
                }
                Message::Failed(error) => Err(error),
                _ => Err(RuntimeError::Died {
                    step: Step::Clone,
                    status: between.reap()?,
                }),
            }
        }
        Cloned::Child => {
            drop(ours);
            let cloned = enter().and_then(|flags| {
                let flags = flags | u64::from(libc::CLONE_PARENT.unsigned_abs());
                sys::clone3(flags, None).map_err(fail)
            });
            match cloned {
                Ok(Cloned::Child) => Ok(Cloned::Child),
                Ok(Cloned::Parent { pid, pidfd }) => {
                    let sent = channel::born(theirs.as_fd(), pid, pidfd.as_fd());
                    sys::exit_now(i32::from(sent.is_err()))
                }
                Err(error) => {
                    channel::failed(theirs.as_fd(), &error);
                    sys::exit_now(1)
                }
            }
        }
    }
}
