// Package inbound speaks SMTP to senders.
//
// It answers 250 to a message only after the spool has said that it is on stable storage, or a primary that it took it;
// and a message is only what ended with CR LF . CR LF or with the last octet of its last BDAT chunk: no connection that
// breaks, no time limit and no misplaced newline ever makes one. An error that is not meant as a refusal is answered
// 451 4.3.0.
//
// Below go-smtp, which knows which command is in order, stands the wire, which knows what a command, a message and a
// reply is:
//
//	socket ── PROXY header ── gate ── pregreet ── TLS ── wire ──┬── commands ──► go-smtp ──► session ──► judge, policy
//	                                                           └── content ─────────────────►   │   ──► relay or spool
//
// A transaction has one destination and one road. Inline, the relay holds it with a primary, whose replies are the
// sender's; a 2yz to the content is the primary's, and nothing is kept here. When the primary goes away before anything
// was handed over, what is left is judged and spooled; when it may have the message but did not say so, the sender hears
// 451. Each transaction with a primary ends: with the message, with Reset, with the session, or when the sender is slow; then
// it is opened anew when it is needed.
//
// A connection's states, and what each may become:
//
//	greeting   the gate, the PROXY header, the pregreet test    → command, ended
//	command    one line is awaited, within CommandTimeout       → command, content, handshake, ended
//	content    DATA or BDAT, within the pace of ContentFloor    → command, ended
//	handshake  STARTTLS; forgets all that was said before       → command, ended
//	ended      the last word was said, or the client is gone
//
// Goroutines: one for each connection, go-smtp's, which owns the wire, the session, the message and the transaction with the
// primary; one for each listener; one that waits for the end. Run awaits them all, and within its grace the bodies that
// were lent to the judge. Shared between them are the gate, the certificates and
// the list of open wires, each with a lock of its own.
package inbound
