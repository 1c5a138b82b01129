package inbound

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"time"

	"understudy/internal/mta"
)

// obey answers a command, or hands it to go-smtp in a form that it can't misread. Paths and parameters stay with the
// wire, where the session finds them as the client wrote them.
func (w *wire) obey(cmd command) {
	w.cmd = cmd
	if w.forgotten(cmd.verb) {
		w.reply(cmd.verb, sayHello)
		return
	}
	switch cmd.verb {
	case verbHELO, verbEHLO:
		w.hello(cmd)
	case verbMAIL:
		growStack(-1)
		w.path(cmd, "FROM:")
	case verbRCPT:
		w.path(cmd, "TO:")
	case verbDATA:
		if w.bare(cmd) {
			w.content = newContent(w)
			w.pass(verbDATA)
		}
	case verbBDAT:
		w.bdat(cmd)
	case verbRSET:
		if w.bare(cmd) && w.idle() {
			w.pass(verbRSET)
		}
	case verbQUIT:
		if w.bare(cmd) {
			w.pass(verbQUIT)
		}
	case verbNOOP:
		if w.idle() {
			w.reply(cmd.verb, mta.NewReply(250, "2.0.0", "done"))
		}
	case verbVRFY:
		if w.idle() {
			w.reply(cmd.verb, mta.NewReply(252, "2.5.2", "send some mail, and you will see"))
		}
	case verbHELP:
		if w.idle() {
			w.reply(cmd.verb, w.help())
		}
	case verbSTARTTLS:
		w.startTLS(cmd)
	case verbETRN:
		w.etrn(cmd)
	case verbEXPN, verbAUTH:
		w.reply(cmd.verb, mta.NewReply(502, "5.5.1", "%s is not done here", cmd.verb))
	default:
		w.reply(cmd.verb, mta.NewReply(500, "5.5.2", "command %q is unknown", printable(cmd.verb)))
	}
}

// forgotten tells that a command builds on a greeting from before STARTTLS, of which go-smtp still knows but nobody else
// may (RFC 3207, 4.2).
func (w *wire) forgotten(verb string) bool {
	if w.greeted || w.secured == nil {
		return false
	}
	return verb == verbMAIL || verb == verbRCPT || verb == verbDATA
}

// growStack sees to it that the goroutine's stack is as large as a message will need it, in one step and while there is
// little on it: grown step by step in the depth of Data it would be copied again and again, for each new client. It is the
// call that does it, as this frame must fit. An idle client keeps its small stack.
//
//go:noinline
func growStack(at int) byte {
	if at < 0 {
		return 0
	}
	var room [12 << 10]byte
	return room[at]
}

// pass hands a command to go-smtp.
func (w *wire) pass(parts ...string) {
	w.line = w.line[:0]
	for _, p := range parts {
		w.line = append(w.line, p...)
	}
	w.line = append(w.line, crlf...)
	w.feed = w.line
}

// bare refuses an argument where there must be none.
func (w *wire) bare(cmd command) bool {
	if cmd.arg == "" {
		return true
	}
	w.reply(cmd.verb, mta.NewReply(501, "5.5.4", "%s takes no argument", cmd.verb))
	return false
}

// idle counts a command that moves no mail: after many of them, each is an error.
func (w *wire) idle() bool {
	w.junk++
	if w.junk <= maxJunk || w.srv.trusts(w.remote.Addr()) {
		return true
	}
	w.reply("", mta.NewReply(503, "5.5.1", "too many commands without mail"))
	return false
}

func (w *wire) help() *mta.Reply {
	text := "see RFC 5321"
	if w.srv.cfg.Contact != "" {
		text += ", or ask " + w.srv.cfg.Contact
	}
	return mta.NewReply(214, "2.0.0", "%s", text)
}

// hello notes the client's name. Only its first word counts, as some clients add more.
func (w *wire) hello(cmd command) {
	if !w.idle() {
		return
	}
	name, _, _ := strings.Cut(cmd.arg, " ")
	if name == "" || len(name) > 255 {
		w.reply(cmd.verb, mta.NewReply(501, "5.5.4", "%s wants your name", cmd.verb))
		return
	}
	w.greeted, w.esmtp, w.helo = true, cmd.verb == verbEHLO, name
	w.pass(cmd.verb, " client") // go-smtp needs a name, any will do
}

// path checks the shape of MAIL or RCPT. The session reads the path itself from w.cmd.
func (w *wire) path(cmd command, keyword string) {
	if _, _, ok := splitPath(cmd.arg, keyword); !ok {
		w.reply(cmd.verb, mta.NewReply(501, "5.5.4", "want %s %s<address>", cmd.verb, keyword))
		return
	}
	w.pass(cmd.verb, " ", keyword, "<a@b>")
}

// has reports whether a keyword is offered to this client now.
func (w *wire) has(keyword string) bool {
	if w.listener.hidden[keyword] {
		return false
	}
	switch keyword {
	case "STARTTLS":
		return w.srv.certs != nil && w.secured == nil
	case "ETRN":
		return w.srv.deps.Recovered != nil
	case "REQUIRETLS":
		return w.srv.cfg.RequireTLS && w.secured != nil
	}
	return true
}

func (w *wire) offers() offers {
	return offers{utf8: w.has("SMTPUTF8"), dsn: w.has("DSN"), eightBit: w.has("8BITMIME"), requireTLS: w.has("REQUIRETLS")}
}

// offered is what EHLO lists.
func (w *wire) offered() []string {
	var list []string
	for _, k := range keywords {
		if !w.has(k) {
			continue
		}
		switch k {
		case "SIZE":
			k += " " + strconv.FormatInt(int64(w.srv.cfg.MaxMessageSize), 10)
		case "LIMITS":
			k += " RCPTMAX=" + strconv.Itoa(w.srv.cfg.MaxRecipients)
		}
		list = append(list, k)
	}
	return list
}

// startTLS does the handshake. What the client sent before it in clear is thrown away, for someone else may have
// put it there; and a handshake that fails ends the connection, which go-smtp would continue in clear.
func (w *wire) startTLS(cmd command) {
	switch {
	case !w.bare(cmd):
		return
	case w.secured != nil:
		w.reply(cmd.verb, mta.NewReply(503, "5.5.1", "TLS is on already"))
		return
	case !w.has("STARTTLS"):
		w.reply(cmd.verb, mta.NewReply(502, "5.5.1", "STARTTLS is not offered"))
		return
	case !w.greeted:
		w.reply(cmd.verb, sayHello)
		return
	}
	w.reply(cmd.verb, mta.NewReply(220, "2.0.0", "go ahead"))
	w.flush()
	w.r, w.w = 0, 0
	if w.ended {
		return
	}
	state, err := w.handshake()
	if err != nil {
		w.srv.metrics.handshakes.WithLabelValues("failed").Inc()
		w.log.Info("TLS handshake failed", "peer", w.remote, "err", err)
		w.ended = true
		return
	}
	w.srv.metrics.handshakes.WithLabelValues(tls.VersionName(state.Version)).Inc()
	w.secured = &state
	w.greeted, w.esmtp, w.helo = false, false, ""
}

// handshake runs on a goroutine of its own, because the stack that it grows would stay with an idle connection.
func (w *wire) handshake() (tls.ConnectionState, error) {
	conn := tls.Server(w.raw, w.srv.certs.config())
	ctx, cancel := context.WithTimeout(context.Background(), tlsTimeout)
	defer cancel()
	w.raw.SetDeadline(time.Now().Add(tlsTimeout))
	done := make(chan error, 1)
	go func() { done <- conn.HandshakeContext(ctx) }()
	if err := <-done; err != nil {
		return tls.ConnectionState{}, err
	}
	w.conn = net.Conn(conn)
	return conn.ConnectionState(), nil
}
