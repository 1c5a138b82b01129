package filter

import (
	"errors"
	"fmt"
	"io"
	"time"

	"understudy/internal/mta"
)

// message is what filters are asked about. It is read by several at once and never changed.
type message struct {
	env      *mta.Envelope
	content  mta.Content
	auth     mta.Auth
	hostname string // ours
}

// errContent is in the chain of an error that is our own and not the filter's: the content could not be read.
var errContent = errors.New("content could not be read")

func (m *message) open() (io.ReadCloser, error) {
	r, err := m.content.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errContent, err)
	}
	return contentReader{r}, nil
}

// contentReader tells its own errors apart from those of the connection that the content is copied to.
type contentReader struct{ io.ReadCloser }

func (r contentReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errContent, err)
	}
	return n, err
}

// received is the trace field that tells spamd who the client was, for it has no other way. It is in the one shape
// that SpamAssassin reads, and nothing that the client chose can look like a part of that shape.
func (m *message) received() string {
	p := &m.env.Peer
	name := p.Name
	if name == "" {
		name = "unknown"
	}
	return fmt.Sprintf("Received: from %s (%s %s)\r\n\tby %s (Understudy) with %s id %s\r\n\t(envelope-from <%s>); %s\r\n",
		plainHelo(p.Helo), plain(name), bracketed(p.Addr.Addr()), plain(m.hostname), plain(p.Proto), m.env.ID, plainPath(m.env.From),
		m.env.Received.Format(time.RFC1123Z))
}
