"""Programs to try, by what they do."""

STORIES = {
    "Shopping": """\
price = 12
count = 3
total = price * count
if total > 30:
    total -= 5
print(total)
""",
    "Fibonacci": """\
a, b = 0, 1
for i in range(8):
    a, b = b, a + b
print(a)
""",
    "Countdown by halves": """\
n = 27
steps = 0
while n > 1:
    if n % 2 == 0:
        n = n // 2
    else:
        n = n - 1
    steps += 1
print(steps)
""",
    "Largest number": """\
numbers = [4, 9, 2, 7, 5]
best = numbers[0]
place = 0
for i in range(len(numbers)):
    if numbers[i] > best:
        best = numbers[i]
        place = i
print(best, place)
""",
    "A word backwards": """\
word = 'river'
out = ''
for letter in word:
    out = letter + out
print(out)
""",
    "Bubble sort": """\
def sort(xs):
    out = xs[:]
    for i in range(len(out)):
        for j in range(len(out) - 1):
            if out[j] > out[j + 1]:
                low = out[j + 1]
                out[j + 1] = out[j]
                out[j] = low
    return out

print(sort([5, 2, 4, 1]))
""",
}
"""What the page's buttons run."""
EXAMPLES = tuple(STORIES.values())
