//! Clients: signs of life, retirement, the end of their open files.
