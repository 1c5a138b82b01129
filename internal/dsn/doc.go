// Package dsn writes delivery status notifications (RFC 3461, 3464, 6522, 6533): what a sender is told of a message that
// was not delivered, or that left for a server that will not tell.
//
// It only writes. Who may be told anything at all is decided elsewhere; a report to a forged sender is spam of our own
// making. A report has a null reverse-path, carries the header of the message and never its content, and nothing that a
// sender or a primary chose can end one of its lines.
package dsn
