//! The terminal, while something is shown on all of it.

use kiln_env::Env;
use kiln_types::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{Read, Write};
use tokio::sync::mpsc;

/// The alternate screen without a cursor; the terminal is as it was when this is dropped.
pub(super) struct Screen {
    before: Termios,
    keys: mpsc::Receiver<()>,
}

/// Ctrl-C and Ctrl-D as bytes.
const END_KEYS: [u8; 4] = [b'q', b'Q', 3, 4];

impl Screen {
    /// Takes the terminal of standard input and output.
    ///
    /// # Errors
    /// `Local` when there is none.
    pub(super) fn open(env: &Env) -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from);
        let before = before.context("the terminal")?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw)
            .map_err(std::io::Error::from)
            .context("the terminal")?;
        let (sender, keys) = mpsc::channel(1);
        let screen = Self { before, keys };
        write("\x1b[?1049h\x1b[?25l");
        env.spawn_thread("keys", move || {
            let mut key = [0];
            while let Ok(1) = std::io::stdin().read(&mut key) {
                if END_KEYS.contains(&key[0]) {
                    break;
                }
            }
            let _ = sender.blocking_send(());
        })?;
        Ok(screen)
    }

    /// Shows `text`, cut to what fits.
    pub(super) fn show(&self, text: &str) {
        let size = tcgetwinsize(std::io::stdout());
        let (rows, columns) =
            size.map_or((24, 80), |size| (size.ws_row as usize, size.ws_col as usize));
        let lines = text.lines().take(rows.max(1));
        let lines: Vec<String> = lines.map(|line| line.chars().take(columns).collect()).collect();
        write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")));
    }

    /// Waits until the user wants to end.
    pub(super) async fn quit(&mut self) {
        self.keys.recv().await;
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// A terminal that is gone cannot be told.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
