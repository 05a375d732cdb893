# ruff: noqa: RUF001 - the Chinese paragraph has Chinese punctuation
"""The text on which quality is measured where none is given: prose, code, figures and two other languages.

It is short, so it tells a broken quantization from a sound one and no more. For a decision about a product,
give a text of the kind the product will see.
"""

from __future__ import annotations

NAME = "the built-in text"

TEXT = """\
The harbour froze twice in living memory. The first time, the ferries stopped for nine days, and people
who had always taken the boat to work walked across the ice instead, in single file, following a line of
lanterns that the pilots had set out before dawn. The second time nobody walked, because by then there was
a bridge, and what people remembered afterwards was not the cold but the silence: no engines, no gulls,
only the ice settling against the piles with a sound like furniture being moved in another room.

An engine for a language model is judged by three numbers. The first is how long a user waits for the
first word. The second is how fast the words follow. The third, which is seldom printed, is how often the
answer differs from what the model itself would have said. A program that improves the first two at the
expense of the third has not made the model faster; it has replaced it by another model. That is why a
comparison should begin with the outputs and only then turn to the clock.

def merge(left: list[int], right: list[int]) -> list[int]:
    \"\"\"Merge two sorted lists into one sorted list.\"\"\"
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]

To bake a plain loaf, mix 500 g of flour with 350 g of water and 10 g of salt. Add 3 g of dry yeast, knead
for ten minutes and let the dough rest until it has doubled, which takes about two hours at 24 degrees.
Shape it, let it rise again for 45 minutes, and bake it at 230 degrees for half an hour. The loaf is done
when it sounds hollow.

水从高处流向低处，人往往也选择比较容易走的路。可是登山的人知道，最近的路不一定最省力，
有时绕一点远路，反而能更早到达山顶。学习一门语言也是这样：先把常用的词记牢，
再慢慢读长一点的文章，不必着急。

Der Zug nach Norden fährt um 7.42 Uhr von Gleis 3 ab und hält in jeder Stadt, durch die er kommt. Wer es
eilig hat, nimmt den späteren, der nur zweimal hält und trotzdem eine Viertelstunde früher ankommt.

Question: A tank holds 240 litres. One pipe fills it in 6 hours, another empties it in 8 hours. How long
does it take to fill the tank if both are open? Answer: The first pipe brings 40 litres an hour and the
second takes away 30, so 10 litres an hour remain, and the tank is full after 24 hours.

The committee met on 14 March 1997 and again on 2 May. Of its eleven members, seven voted for the
proposal, three against it, and one was absent. The minutes record that the chair thanked everyone for
their patience, that the window could not be closed, and that the next meeting would be held in the
smaller room on the second floor.

SELECT city, COUNT(*) AS orders, ROUND(AVG(total), 2) AS mean_total
FROM orders JOIN customers ON orders.customer_id = customers.id
WHERE orders.created_at >= '2024-01-01'
GROUP BY city HAVING COUNT(*) > 10 ORDER BY orders DESC;

She read the letter three times. The first time she looked only for the date; the second time she read
what it said; the third time she read what it left out. Then she folded it along its old creases, put it
back into the drawer where it had lain for thirty years, and went downstairs to tell her brother that he
had been right after all.
"""
