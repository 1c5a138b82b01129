package inbound

import (
	"context"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Relay opens transactions with primaries, beside those of senders.
type Relay interface {
	// Begin takes a session to a primary of dest and says MAIL, now or with the first RCPT. mta.ErrAway in the chain: no
	// primary takes mail now. A *mta.Reply in the chain is the sender's answer.
	Begin(ctx context.Context, env *mta.Envelope, dest string) (Transaction, error)
}

// Transaction is one message's way to the primary. One goroutine uses it.
type Transaction interface {
	// Rcpt gives the primary's reply, of any class. mta.ErrAway in the chain: the session is lost; any other error is our
	// own fault.
	Rcpt(ctx context.Context, r mta.Recipient) (mta.Reply, error)
	// Send hands the content over and gives the primary's final reply, for the recipients that it took. mta.ErrAway in
	// the chain: for certain nothing was handed over; any other error leaves that in doubt.
	Send(ctx context.Context, c mta.Content) (mta.Reply, error)
	// Abort gives the session back. It is harmless after Send and after itself.
	Abort()
}

// The relay has its own, shorter limits; these keep a fault of it from outlasting the sender's patience.
const (
	rcptLimit = 4 * time.Minute // the sender waits 5 minutes for the reply to RCPT (RFC 5321, 4.5.3.2.3)
	sendLimit = 9 * time.Minute // and 10 for the one to its content (4.5.3.2.6)
)

var (
	crowded   = mta.NewReply(451, "4.7.0", "too many messages at once from your network, please try again later")
	otherRoad = mta.NewReply(452, "4.5.3", "this recipient needs a message of its own, please send it another copy")
	unsure    = mta.NewReply(451, "4.3.0", "the primary server did not confirm the message, please try again")
	disturbed = mta.NewReply(451, "4.3.0", "trouble between us and the primary server, please try again later")
	notAgain  = mta.NewReply(451, "4.3.0", "the primary server did not wait for the message, please try again")
)

// taken reports a 2yz: a 3yz where none belongs is none.
func taken(r mta.Reply) bool { return r.Code/100 == 2 }

// aboutUs tells whether a primary's refusal is of our own dialogue with it and not of the sender's mail: out of sequence,
// not understood, TLS or a password wanted, or no reply at all. To pass that on would bounce mail for a fault of ours.
func aboutUs(r mta.Reply) bool {
	switch r.Code {
	case 530, 534, 535, 538:
		return true
	case 500, 502, 503, 521, 555:
		return r.Enhanced == "" || strings.HasPrefix(r.Enhanced, "5.5.")
	}
	return r.Code < 200 || r.Code >= 600 || r.Code/100 == 3
}

// inOurName is the primary's reply word for word, but for the first word of a 421: that is the name of the host that
// closes the connection (RFC 5321, 4.2.2), and to the sender that is us.
func inOurName(r mta.Reply, hostname string) *mta.Reply {
	if r.Code != 421 {
		return &r
	}
	first, rest, _ := strings.Cut(r.Text, " ")
	name := strings.TrimRight(first, ":;,")
	if _, err := mta.Domain(name); err != nil || !strings.Contains(name, ".") {
		rest = r.Text
	}
	r.Text = strings.TrimRight(hostname+" "+rest, " ")
	return &r
}
