package forwarder

import (
	"errors"
	"testing"
	"time"
)

func TestOneTroubleThatEndsManySessionsCountsOnce(t *testing.T) {
	h := newHost("mx1.example.org:25")
	now := time.Now()
	for range 20 {
		h.failed(now, errors.New("cut"))
		now = now.Add(time.Millisecond)
	}
	if pause := h.until.Sub(now); pause > pauseMin {
		t.Errorf("after one event it is left alone for %v, want %v at most", pause, pauseMin)
	}
	for range 10 {
		now = h.until
		h.failed(now, errors.New("cut again"))
	}
	if pause := h.until.Sub(now); pause > pauseMax || pause < pauseMax/2 {
		t.Errorf("after trouble that goes on it is left alone for %v, want about %v", pause, pauseMax)
	}
	if h.worked(0); h.until.After(now) {
		t.Error("a message that it took does not end the pause")
	}
}
