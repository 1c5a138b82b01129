package healthprobe

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// errOurselves is a primary that greets with our own name: what we sent there would come back to us.
var errOurselves = errors.New("it calls itself by our own name: mail would come back to us")

// judge makes a probe's result of its error. ours reports trouble of this process, which says nothing about the
// primary.
func judge(err error) (r result, ours bool) {
	if err == nil {
		return took, false
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) {
		return failed, true
	}
	if reply := replyOf(err); reply != nil && !errors.Is(err, smtpc.ErrGarbage) {
		return refused, false
	}
	if stepOf(err) == smtpc.StepSTARTTLS && !hungUp(err) && !timedOut(err) { // it answers, and mail may not go there
		return refused, false
	}
	return failed, false
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, net.ErrClosed)
}

func replyOf(err error) *mta.Reply {
	if e, ok := errors.AsType[*smtpc.Error](err); ok {
		return e.Reply
	}
	return nil
}

// stepOf is where a session ended.
func stepOf(err error) smtpc.Step {
	if e, ok := errors.AsType[*smtpc.Error](err); ok {
		return e.Step
	}
	return smtpc.StepNone
}

// noPostmaster reports the refusal of a primary that does not know its postmaster. It must (RFC 5321, 4.5.1), but one
// that tells users from strangers takes mail: it is noted, and counts as up. A bare 550 may as well be a refusal of us.
func noPostmaster(r mta.Reply) bool {
	if r.Code != 550 && r.Code != 551 && r.Code != 553 {
		return false
	}
	switch r.Enhanced {
	case "5.1.0", "5.1.1", "5.1.3", "5.1.6", "5.1.10":
		return true
	}
	return false
}

// words says an error of a probe in few words that an operator can act on.
func words(err error) string {
	if err == nil {
		return ""
	}
	if r := replyOf(err); r != nil {
		return r.String()
	}
	switch {
	case errors.Is(err, errOurselves):
		return errOurselves.Error()
	case errors.Is(err, smtpc.ErrGarbage):
		return "it does not speak SMTP"
	case errors.Is(err, dnsx.ErrNotFound):
		return "its name has no address"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to it"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it reset the connection"
	case hungUp(err):
		return "it closed the connection without a word"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return "its name can't be looked up now: " + e.Err
	}
	if timedOut(err) {
		return "no answer in time"
	}
	e, ok := errors.AsType[*smtpc.Error](err)
	if ok && e.Err != nil {
		err = e.Err
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

func timedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
