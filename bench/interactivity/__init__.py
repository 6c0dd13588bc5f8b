"""What the interactivity benchmark is made of: stimuli from a seed.

speech      words and sentences in many voices, with the time of every word
acoustics   noise, rooms, levels, and mixing into one recording
figures     drawn figures that move: repeated motions, and when each repetition ends
"""
