package smtpc

import (
	"context"
	"errors"
	"io"
	"time"

	"understudy/internal/mta"
)

// Message is one message to be sent. Its content has CRLF line ends and is either in memory or a stream.
type Message struct {
	From    mta.Path
	Params  mta.Params
	Rcpts   []mta.Recipient
	Size    int64                         // octets of content; below 0: not known, in a Transaction
	Content []byte                        // all of it; nil if Open is set
	Open    func() (io.ReadCloser, error) // a stream of Size octets that reports damage before io.EOF
	Free    func()                        // called once when Content is needed no more; may be nil
	Tag     any                           // the caller's own
}

// free gives the content back.
func (m *Message) free() {
	m.Content = nil
	if m.Free != nil {
		m.Free()
		m.Free = nil
	}
}

// Fate is what became of a message as a whole.
type Fate uint8

const (
	Unsent     Fate = iota // the session ended; the primary did not take it
	InDoubt                // the session ended after content was written: the primary may have taken it
	Answered               // each recipient has its reply
	Unsendable             // never tried: Result.Err says what stands against it with this primary
)

var fateNames = [...]string{"unsent", "in doubt", "answered", "unsendable"}

func (f Fate) String() string { return fateNames[f] }

// What can stand against a message (Unsendable).
var (
	ErrNeeds8Bit       = errors.New("the message has 8-bit content and the primary does not offer 8BITMIME")
	ErrNeedsUTF8       = errors.New("the message needs SMTPUTF8 and the primary does not offer it")
	ErrNeedsRequireTLS = errors.New("the sender asked for REQUIRETLS and the way to the primary does not keep it")
	ErrTooBig          = errors.New("the message is larger than the primary takes")
	ErrUnsafe          = errors.New("an address can't be written into a command")
	ErrContent         = errors.New("content can't be sent") // unreadable, damaged, or with bare CR or LF; the cause is wrapped beside it
)

// Answer is what the primary said of one recipient, and at which step.
type Answer struct {
	Step  Step // StepMAIL, StepRCPT, StepDATA or StepFinal
	Reply mta.Reply
}

// Result is what became of a message.
type Result struct {
	Fate    Fate
	Rcpts   []Answer      // in the order of Message.Rcpts; only if Answered
	Err     error         // why it was not answered
	Suspect bool          // the session ended while the primary was busy with this very message
	Took    time.Duration // from its first command to its last reply
	DSN     bool          // the primary was asked for the reports that the sender wants, and will send them
	Window  int           // how many messages the way held then; 0 if that is not known
}

// Source gives messages to a session and hears of their ends.
type Source interface {
	// Next gives the next message. With wait it blocks until there is one, and nil ends the session; without, nil says that
	// none is there now. It returns when ctx is done.
	Next(ctx context.Context, wait bool) *Message
	// Done is called once for each message that Next gave, in no particular order, from any goroutine. It must not block.
	Done(m *Message, r Result)
}
