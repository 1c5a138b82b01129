// Package smtpc is the client side of SMTP (RFC 5321) and LMTP (RFC 2033): it opens a session with a primary and sends
// messages over it as fast as the primary's extensions allow.
//
// What a caller may rely on:
//   - Every step has a time limit (RFC 5321, 4.5.3.2), every line and reply a length limit, and a context ends any of them.
//   - Nothing that a sender chose can end a command line or become a command.
//   - Whatever goes wrong is an *Error that names the step. The primary's reply is in Error.Reply and never in the chain
//     of wrapped errors, so that a refusal of us is not passed on to a sender by accident.
//   - A reply that is not one (RFC 5321, 4.2), that was not asked for, or that can't follow the command ends the session.
package smtpc
