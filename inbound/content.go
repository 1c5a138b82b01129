package inbound

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"understudy/internal/mta"
)

// content is the message that a wire is taking in. BDAT reaches go-smtp as DATA: so both are read by one loop on one
// goroutine, and a message is whole only when its dot or its last chunk was read.
type content struct {
	w      *wire
	framer framer
	chunk  int64 // octets of the BDAT chunk still to come
	bdat   bool
	last   bool  // the chunk is the last one
	begun  bool  // go-smtp is ready for it
	asked  bool  // the session wants it
	err    error // how it ended; io.EOF if whole
	pace   pace
}

// newContent begins a message.
func newContent(w *wire) *content {
	return &content{w: w, framer: framer{dots: true}}
}

// bdat begins a message with a chunk. Later chunks are read by next.
func (w *wire) bdat(cmd command) {
	if !w.has("CHUNKING") {
		// The chunk would be obeyed as commands: there is no way on.
		w.end(mta.NewReply(502, "5.5.1", "BDAT is not offered"))
		return
	}
	c := &content{w: w, bdat: true}
	if !c.open(cmd) {
		return
	}
	w.content = c
	if !w.greeted { // the chunk is on its way all the same, and Read will eat it
		w.reply(cmd.verb, sayHello)
		return
	}
	w.pass(verbDATA)
}

// badChunk ends the connection: nobody knows how much of what follows is content, and content must never be obeyed.
var badChunk = mta.NewReply(501, "5.5.4", "want BDAT SIZE [LAST]")

// open reads the argument of BDAT.
func (c *content) open(cmd command) bool {
	size, rest, _ := strings.Cut(cmd.arg, " ")
	n, err := strconv.ParseInt(size, 10, 64)
	rest = strings.TrimSpace(rest)
	if err != nil || n < 0 || size[0] == '+' || rest != "" && !strings.EqualFold(rest, "LAST") {
		c.w.end(badChunk)
		return false
	}
	c.chunk, c.last = n, rest != ""
	return true
}

// next returns the next run of content, which stays valid until the call after it. io.EOF says that the message is
// whole; any other error, that it is not and never will be.
func (c *content) next() ([]byte, error) {
	if !c.asked {
		c.asked = true
		if c.w.owed {
			c.w.flush()
		}
		if !c.bdat {
			c.w.out = appendReply(c.w.out, mta.NewReply(354, "", "go ahead, and end with a dot on a line by itself"))
		}
		c.pace = newPace(time.Now(), c.w.srv.cfg.ContentWindow, int64(c.w.srv.cfg.ContentFloor))
	}
	for c.err == nil {
		run, err := c.step()
		c.err = err
		if len(run) > 0 {
			return run, nil
		}
	}
	return nil, c.err
}

// step takes one step: through the octets at hand, to the next chunk, or to the socket.
func (c *content) step() ([]byte, error) {
	w := c.w
	if c.bdat && c.chunk == 0 {
		if c.last {
			return c.framer.finish(), io.EOF
		}
		return nil, c.nextChunk()
	}
	if w.r == w.w {
		err := w.fill(c.pace.deadline, true)
		c.pace.observe(time.Now(), int64(w.w-w.r))
		return nil, err
	}
	in := w.in[w.r:w.w]
	if c.bdat {
		in = in[:min(int64(len(in)), c.chunk)]
	}
	run, used := c.framer.next(in)
	w.r += used
	if c.bdat {
		c.chunk -= int64(used)
	}
	if c.framer.state == ended {
		return run, io.EOF
	}
	return run, nil
}

// nextChunk answers a chunk and reads the command for the next one. Anything that ends a message in the middle is
// kept for later: the session must hear of the end first.
func (c *content) nextChunk() error {
	w := c.w
	w.reply(verbBDAT, mta.NewReply(250, "2.0.0", "chunk taken"))
	for {
		line, err := w.readLine(w.srv.cfg.CommandTimeout, true)
		if err != nil {
			return err
		}
		cmd, ok := w.parse(line)
		switch {
		case w.ended:
			return errEnded
		case !ok:
		case cmd.verb == verbBDAT:
			if !c.open(cmd) {
				return errEnded
			}
			c.pace = newPace(time.Now(), w.srv.cfg.ContentWindow, int64(w.srv.cfg.ContentFloor))
			return nil
		case cmd.verb == verbRSET, cmd.verb == verbQUIT, cmd.verb == verbEHLO, cmd.verb == verbHELO:
			w.held = &cmd
			return errAborted
		case cmd.verb == verbNOOP:
			w.reply(cmd.verb, mta.NewReply(250, "2.0.0", "done"))
		default:
			w.reply(cmd.verb, mta.NewReply(503, "5.5.1", "BDAT or RSET must come now"))
		}
	}
}

// whole reports that the run just returned was the last, which may be a newline of ours.
func (c *content) whole() bool { return errors.Is(c.err, io.EOF) }

// rest reads and drops what the session left unread of a message, or of the chunk that its refusal answers. A client
// that sends on and on is cut off.
func (c *content) rest() {
	left := int64(c.w.srv.cfg.MaxMessageSize)
	for c.err == nil && (!c.bdat || c.chunk > 0) {
		run, err := c.step()
		c.err = err
		if left -= int64(len(run)); left < 0 {
			c.w.end(mta.NewReply(552, "5.3.4", "the message is far larger than what is taken here"))
			return
		}
	}
}

// endContent runs when go-smtp is done with the content, or has refused it: go-smtp gets its dot.
func (w *wire) endContent() {
	c := w.content
	w.content = nil
	if !c.asked { // refused before it was asked for: a chunk is on its way all the same
		c.pace = newPace(time.Now(), w.srv.cfg.ContentWindow, int64(w.srv.cfg.ContentFloor))
	}
	if c.asked || c.bdat {
		c.rest()
	}
	if errors.Is(c.err, errAborted) {
		w.mute = true
	}
	if c.begun {
		w.pass(".")
	}
}

// pace holds a sender of content to a least speed. Its deadline moves on with each window in which enough came, so a
// slow body is taken and one that drips for ever is not.
type pace struct {
	window   time.Duration
	floor    int64 // octets a window
	got      int64
	deadline time.Time // the end of the window
}

func newPace(now time.Time, window time.Duration, perSecond int64) pace {
	return pace{window: window, floor: perSecond * int64(window/time.Second), deadline: now.Add(window)}
}

// observe counts octets; once the window has its share, the next one begins.
func (p *pace) observe(now time.Time, octets int64) {
	p.got += octets
	if p.got > 0 && p.got >= p.floor {
		p.got = 0
		p.deadline = now.Add(p.window)
	}
}
