//! The asynchronous edge: sockets, TLS, threads, the kernel. It moves bytes and decides nothing.
//!
//! Begin with [`connection`], the life of one request. The others, from the outside in:
//!
//! * [`server`] starts and stops everything, [`doors`] opens the addresses, [`origins`] tries the upstreams, [`sandbox`] takes
//!   away what is not needed any more; [`worker`] is one thread; [`listener`] accepts,
//!   [`arrival`] hears who comes, [`heard`] forgets what they said
//! * [`generation`] is what one configuration becomes, [`reload`] puts another in its place, [`handover`] another process,
//!   and [`notify`] tells the service manager
//! * [`stream`] and [`tls`] are the client's side, [`upstream`] the registry's, [`relay`] moves bodies
//!   between them, with [`buffers`] where it must copy; [`tunnel`] is what an upgraded connection becomes
//! * [`balance`] chooses among several upstreams, [`health`] checks them, [`names`] follows their addresses
//! * [`plan`], [`gate`], [`attempts`], [`auth_backend`], [`passwords`], [`hashing`] lead to a verdict, [`exchange`] carries it out
//! * [`watch`] keeps deadlines, [`telemetry`] tells what happened, [`admin`] shows it and takes [`revoke`]
//! * [`guard`] loads the eBPF programs; [`user`], [`auth_service`], [`explain`] and [`files`] serve their commands
//! * [`sys`] makes the system calls

pub mod admin;
pub mod arrival;
pub mod attempts;
pub mod auth_backend;
pub mod auth_service;
pub mod balance;
pub mod buffers;
pub mod connection;
pub mod doors;
pub mod exchange;
pub mod explain;
pub mod files;
pub mod gate;
pub mod gather;
pub mod generation;
pub mod guard;
pub mod handover;
pub mod hashing;
pub mod health;
pub mod heard;
pub mod listener;
pub mod names;
pub mod notify;
pub mod origins;
pub mod passwords;
pub mod plan;
pub mod relay;
pub mod reload;
pub mod requests;
pub mod revoke;
pub mod sandbox;
pub mod server;
pub mod stream;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod user;
pub mod watch;
pub mod worker;
