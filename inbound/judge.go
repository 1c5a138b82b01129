package inbound

import (
	"context"

	"understudy/internal/mta"
)

// Policy knows the recipients.
type Policy interface {
	// Recipient decides about one RCPT that would be spooled. It returns the recipient with Dest set, and with the domain
	// filled in for a bare postmaster. A *mta.Reply in err refuses it; any other error is our own fault.
	Recipient(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, error)
}

// Judge chooses the road of a message, and judges what would be spooled. A *mta.Reply in an error is what the sender is
// told; any other error is our own fault.
type Judge interface {
	// Admit places one recipient before anything else is asked about it: Dest, with the domain filled in for a bare
	// postmaster, and the road.
	Admit(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, mta.Road, error)
	// Heard is told of the primary's reply to an inline RCPT, and gives what the sender is to hear. It may soften a
	// refusal; it makes no refusal of an acceptance, nor the reverse.
	Heard(ctx context.Context, env *mta.Envelope, to mta.Recipient, r mta.Reply) mta.Reply
	// Sender judges client, HELO and reverse-path, once a transaction, before Recipient is asked first.
	Sender(ctx context.Context, env *mta.Envelope) *mta.Verdict
	// Content judges a whole message that would be spooled, as it came. The edit is of what is stored.
	Content(ctx context.Context, env *mta.Envelope, c mta.Content) (mta.Verdict, mta.Edit, error)
	// Clean gives the edit for a message that goes inline. It asks nobody.
	Clean(env *mta.Envelope, c mta.Content) (mta.Edit, error)
	// Shadow may take a message that the primary just answered with final, for a verdict of our own beside it. True:
	// release is called once, when env and c are needed no more; env is only read. It never blocks.
	Shadow(env *mta.Envelope, c mta.Content, final mta.Reply, release func()) bool
}
