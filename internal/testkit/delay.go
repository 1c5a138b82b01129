package testkit

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Delay is a way to a server that is long, not narrow: every octet arrives half a round trip after it left, in either
// direction.
type Delay struct {
	t      testing.TB
	to     string
	half   time.Duration
	ln     net.Listener
	mu     sync.Mutex
	live   map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// NewDelay makes a way of the round trip time rtt to the address. It ends with the test.
func NewDelay(t testing.TB, to string, rtt time.Duration) *Delay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &Delay{t: t, to: to, half: rtt / 2, ln: ln, live: map[net.Conn]struct{}{}}
	d.wg.Go(d.accept)
	t.Cleanup(d.Close)
	return d
}

// Addr is the near end.
func (d *Delay) Addr() string { return d.ln.Addr().String() }

// Close ends the way and all that is on it.
func (d *Delay) Close() {
	d.mu.Lock()
	d.closed = true
	d.ln.Close()
	for c := range d.live {
		c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *Delay) accept() {
	for {
		near, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.carry(near) })
	}
}

// enter notes a connection, unless all is over.
func (d *Delay) enter(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.live[c] = struct{}{}
	}
	return !d.closed
}

func (d *Delay) leave(c net.Conn) {
	c.Close()
	d.mu.Lock()
	delete(d.live, c)
	d.mu.Unlock()
}

// carry takes one connection to the far end. The handshake costs its round trip too.
func (d *Delay) carry(near net.Conn) {
	defer d.leave(near)
	time.Sleep(2 * d.half)
	far, err := net.Dial("tcp", d.to)
	if err != nil || !d.enter(near) || !d.enter(far) {
		if far != nil {
			far.Close()
		}
		return
	}
	defer d.leave(far)
	var both sync.WaitGroup
	both.Go(func() { d.oneWay(far, near) })
	both.Go(func() { d.oneWay(near, far) })
	both.Wait()
}

// parcel is what was read at one time.
type parcel struct {
	b   []byte
	due time.Time
}

func (d *Delay) oneWay(to, from net.Conn) {
	way := make(chan parcel, 4096)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				way <- parcel{b[:n], time.Now().Add(d.half)}
			}
			if err != nil {
				return
			}
		}
	})
	for p := range way {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.b); err != nil {
			break
		}
	}
	if tc, ok := to.(*net.TCPConn); ok {
		tc.CloseWrite()
	}
	io.Copy(io.Discard, &channelReader{way})
	reader.Wait()
}

// channelReader lets what can't be delivered any more be thrown away.
type channelReader struct{ way <-chan parcel }

func (r *channelReader) Read(b []byte) (int, error) {
	if _, ok := <-r.way; !ok {
		return 0, io.EOF
	}
	return len(b), nil
}
