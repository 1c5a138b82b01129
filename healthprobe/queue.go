package healthprobe

import (
	"container/heap"
	"time"
)

// slot is an element's place in a queue.
type slot struct {
	at    time.Time // when it is due; zero is before all others
	index int       // -1: not queued
}

func (s *slot) place() *slot { return s }

type queued interface{ place() *slot }

// queue orders its elements by when they are due.
type queue[T queued] struct{ items items[T] }

// set queues x for at, wherever it was before.
func (q *queue[T]) set(x T, at time.Time) {
	s := x.place()
	s.at = at
	if s.index < 0 {
		heap.Push(&q.items, x)
		return
	}
	heap.Fix(&q.items, s.index)
}

func (q *queue[T]) remove(x T) {
	if s := x.place(); s.index >= 0 {
		heap.Remove(&q.items, s.index)
	}
}

// next is when the first element is due; false if there is none.
func (q *queue[T]) next() (time.Time, bool) {
	if len(q.items) == 0 {
		return time.Time{}, false
	}
	return q.items[0].place().at, true
}

// pop takes the first element if it is due.
func (q *queue[T]) pop(now time.Time) (x T, ok bool) {
	at, ok := q.next()
	if !ok || at.After(now) {
		return x, false
	}
	return heap.Pop(&q.items).(T), true
}

// items is the heap.Interface below a queue.
type items[T queued] []T

func (q items[T]) Len() int           { return len(q) }
func (q items[T]) Less(i, j int) bool { return q[i].place().at.Before(q[j].place().at) }

func (q items[T]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place().index, q[j].place().index = i, j
}

func (q *items[T]) Push(x any) {
	t := x.(T)
	t.place().index = len(*q)
	*q = append(*q, t)
}

func (q *items[T]) Pop() any {
	old := *q
	x := old[len(old)-1]
	clear(old[len(old)-1:])
	*q = old[:len(old)-1]
	x.place().index = -1
	return x
}
